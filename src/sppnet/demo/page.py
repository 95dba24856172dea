"""The report of the demonstration: its page, the section of a photograph, the section of windows, the style."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Spatial pyramid pooling: photographs of any size</title>
<style>$style</style>
</head>
<body><header>
<h1>One network, photographs of any size</h1>
<p class="lead">Spatial pyramid pooling cuts the feature map of an image, whatever its size, into a fixed number of
bins and takes one number a channel from each. The pyramid ($levels) has $bins bins; with the network's $channels
channels that makes a vector of $length numbers for every image below, and a classifier can be trained on it.
The answers below are those of the network's own ImageNet classifier, which stands on the pyramid of the one level 1:
the mean of the map.</p>
<p>Made in $seconds s with $versions.</p>
<h2>How to read the pictures</h2>
<p>Each white outline is a bin. Its cells are averaged and given to the same classifier, and the likeliest class is
written into the bin where there is room. The stronger the <span class="key">tint</span>, the more probability the bin
alone gives to the answer for the whole photograph; all pictures of one photograph have one scale. Where a level does
not divide the map, neighbouring bins share a row or a column of cells, and the tint there is the mean of theirs. The
cells have seen more than their own part of the photograph, so that a bin does not answer what the same piece would
answer if it were cut out.</p>
<p>The network learnt from images of $side × $side pixels only. On larger ones its probabilities are often much lower,
as the lists and tables show: it takes any size, but it was not trained on any size. All sizes are height × width; ms
is the time of one pass on one thread.</p>
</header><main>
$sections
</main><footer>
<h2>What to do next</h2>
<p>Train a classifier on a folder of class folders, each image at its own size, then ask it about an image:</p>
<pre><code>sppnet train classify DATA --out RUN
sppnet predict RUN IMAGE</code></pre>
$credits
<p>The pictures also lie beside this page as JPEG files.</p>
</footer></body></html>
"""

SECTION = """<section>
<h2>$name</h2>
<p>$size pixels.$shrunk</p>
<div class="answer">
<figure><img src="$photograph" alt="$alt"></figure>
<div class="lists">$own$centre</div>
</div>
<h3>What each bin answers</h3>
<p class="scale">Probability of $label: 0 % <span class="ramp"></span> $most</p>
<div class="levels">$pictures</div>
<h3>The same photograph at other sizes</h3>
<div class="wide" role="region" aria-label="$name at other sizes" tabindex="0"><table>
<thead><tr>$heads</tr></thead>
<tbody>$rows</tbody>
</table></div>
</section>"""

STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --soft: #5a6472; --line: #dde1e7; --back: #fbfbfa; --card: #fff;
  --bar: #d98a00; }
@media (prefers-color-scheme: dark) { :root { --text: #e7eaee; --soft: #a0a9b6; --line: #343a44; --back: #14171c;
  --card: #1c2027; --bar: #ffb02e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 66rem; background: var(--back); color: var(--text);
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
.scale, figcaption, thead, footer { color: var(--soft); }
.ramp { display: inline-block; width: 7rem; height: .8em; margin: 0 .3em; border-radius: .2em;
  background: linear-gradient(to right, #999, #ffa600); }
figcaption { margin-top: .4rem; } figcaption b, footer h2, code { color: var(--text); }
.wide, pre { overflow-x: auto; } table { width: 100%; border-collapse: collapse; }
th, td { padding: .35rem .75rem .35rem 0; text-align: left; white-space: nowrap; font-weight: 400; }
tr { border-bottom: 1px solid var(--line); }
.times th[scope=row] { white-space: normal; } .times tr > :last-child { padding-right: 0; }
.note { margin: 1rem 0 0; font-size: .92rem; color: var(--soft); }
"""

REGIONS = """<section>
<h2>Objects in $name: $windows windows, one pass</h2>
<p>The network runs once over the whole photograph, here with a shorter side of $scale pixels. $windows windows are
pooled from that one map, and the same ImageNet classifier answers for each. They are those $source.</p>
<p>Outlined are the best of the windows whose answer has a probability of $least or more: $objects. A classifier that
is asked about windows is no trained detector: what it outlines is rough, and some of it wrong.
<code>sppnet train detect DATA --out RUN</code> trains a detector on your own boxes.</p>
<div class="answer">
<figure><img src="$picture" alt="$alt"></figure>
<div class="wide times" role="region" aria-label="Time of one pass" tabindex="0"><table>
<thead><tr><th scope="col">$windows windows</th><th scope="col">$scale pixels</th>
<th scope="col">$paper pixels</th></tr></thead><tbody>$rows</tbody></table></div>
</div>
<p class="note">R-CNN, the method before SPP-net, cuts out each window and runs the network on it. Here that was done
for a sample of $sample windows only, spread over the photograph, and their mean time was multiplied by $windows; so
the last two rows are an estimate. All of it ran on one thread. The search for the windows, $search s, comes before
both and is not counted. The paper's own figures, measured on a GPU with 2,000 windows: SPP-net is 24 to 102 times as
fast, and 102 times with $paper pixels alone.</p>
</section>"""
