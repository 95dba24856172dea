"""HTML templates and style sheet of the demo report."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Spatial pyramid pooling: photographs of any size</title>
<style>$style</style>
</head>
<body><header>
<h1>One network, photographs of any size</h1>
<p class="lead">Spatial pyramid pooling divides the feature map of an image of any size into a fixed number of bins and
pools each bin to one value per channel. The pyramid ($levels) has $bins bins; with the network's $channels channels,
every image below becomes a vector of $length values, on which a classifier can be trained. The predictions below come
from the network's own ImageNet classifier, which uses a single level of one bin: the mean of the feature map.</p>
<p>Generated in $seconds s with $versions.</p>
<h2>How to read the pictures</h2>
<p>Each white outline is a bin. The classifier is applied to the mean of the bin's cells, and the most likely class is
written in the bin where it fits. The stronger the <span class="key">tint</span>, the higher the probability that the
bin alone gives to the class predicted for the whole photograph; all pictures of a photograph share one scale. Where a
level does not divide the map evenly, neighboring bins share a row or column of cells, and the tint there is their mean.
The cells' receptive fields extend beyond the bin, so its prediction differs from that of the same region cropped from
the photograph.</p>
<p>The network was trained on images of $side × $side pixels only. On larger images it is often less
certain, as the lists and tables show: it accepts any size, but was not trained on every size. All sizes are height ×
width; ms is the time of one forward pass on one thread.</p>
</header><main>
$sections
</main><footer>
<h2>Next steps</h2>
<p>Train a classifier on a folder with one subfolder per class, each image at its own size, then classify an image:</p>
<pre><code>sppnet train classify DATA --out RUN
sppnet predict RUN IMAGE</code></pre>
$credits
<p>The pictures are also saved as JPEG files next to this page.</p>
</footer></body></html>
"""

SECTION = """<section>
<h2>$name</h2>
<p>$size pixels.$shrunk</p>
<div class="answer">
<figure><img src="$photograph" alt="$alt"></figure>
<div class="lists">$native$center</div>
</div>
<h3>Prediction of each bin</h3>
<p class="scale">Probability of $label: 0% <span class="ramp"></span> $highest</p>
<div class="levels">$pictures</div>
<h3>The same photograph at other sizes</h3>
<div class="wide" role="region" aria-label="$name at other sizes" tabindex="0"><table>
<thead><tr>$heads</tr></thead>
<tbody>$rows</tbody>
</table></div>
</section>"""

STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --muted: #5a6472; --line: #dde1e7; --background: #fbfbfa;
  --card: #fff; --bar: #d98a00; }
@media (prefers-color-scheme: dark) { :root { --text: #e7eaee; --muted: #a0a9b6; --line: #343a44;
  --background: #14171c; --card: #1c2027; --bar: #ffb02e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 66rem; background: var(--background); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1, .lists h3 { margin: 0 0 .5rem; } h1 { font-size: clamp(1.6rem, 5vw, 2.4rem); line-height: 1.15; }
h2 { margin: 2rem 0 .4rem; font-size: 1.3rem; } h3 { margin: 1.75rem 0 .4rem; font-size: 1rem; }
p { max-width: 46rem; margin: 0 0 .8rem; } .lead { font-size: 1.1rem; }
.key { padding: 0 .3em; border-radius: .2em; background: #ffa600; color: #1d2129; }
section, pre { padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
section { margin: 2.5rem 0; } section > h2 { margin-top: 0; }
figure, ol { margin: 0; padding: 0; list-style: none; }
img { display: block; width: 100%; height: auto; max-height: 36rem; object-fit: contain; object-position: left top; }
.answer, .levels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.lists div + div { margin-top: 1.25rem; } ol, .scale, figcaption, table { font-size: .92rem; }
li { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; margin-bottom: .3rem; }
li b, td { font-variant-numeric: tabular-nums; }
li i { grid-column: 1 / -1; height: .3rem; min-width: 2px; border-radius: .15rem; background: var(--bar); }
.scale, figcaption, thead, footer { color: var(--muted); }
.ramp { display: inline-block; width: 7rem; height: .8em; margin: 0 .3em; border-radius: .2em;
  background: linear-gradient(to right, #999, #ffa600); }
figcaption { margin-top: .4rem; } figcaption b, footer h2, code { color: var(--text); }
.wide, pre { overflow-x: auto; } table { width: 100%; border-collapse: collapse; }
th, td { padding: .35rem .75rem .35rem 0; text-align: left; white-space: nowrap; font-weight: 400; }
tr { border-bottom: 1px solid var(--line); }
.times th[scope=row] { white-space: normal; } .times tr > :last-child { padding-right: 0; }
.note { margin: 1rem 0 0; font-size: .92rem; color: var(--muted); }
"""

REGIONS = """<section>
<h2>Objects in $name: $windows windows, one pass</h2>
<p>The network runs once on the whole photograph, resized to a shorter side of $scale pixels. $windows windows are
pooled from that one feature map, and the same ImageNet classifier is applied to each. $source</p>
<p>The boxes are the best windows with a probability of at least $threshold: $objects. A classifier applied to windows
is not a trained detector: its boxes are rough, and some are wrong. <code>sppnet train detect DATA --out RUN</code>
trains a detector on your own boxes.</p>
<div class="answer">
<figure><img src="$picture" alt="$alt"></figure>
<div class="wide times" role="region" aria-label="Time per photograph" tabindex="0"><table>
<thead><tr><th scope="col">$windows windows</th><th scope="col">$scale pixels</th>
<th scope="col">$paper pixels</th></tr></thead><tbody>$rows</tbody></table></div>
</div>
<p class="note">R-CNN, the predecessor of SPP-net, crops each window and runs the network on every crop. Only $sample
windows, spread over the photograph, were timed that way, and their mean time was multiplied by $windows, so the last
two rows are estimates. Everything ran on one thread. Finding the windows ($search s) is the same for both methods and
not included. The paper, with 2,000 windows on a GPU, reports that SPP-net is 24 to 102 times as fast; 102 times at the
single scale of $paper pixels.</p>
</section>"""
