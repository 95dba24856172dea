"""Names of networks."""

EMBEDDED_BACKBONE = "tf_efficientnet_lite0"
PAPER_BACKBONES = ("zf5", "convnet5", "overfeat5", "overfeat7")
