"""What the reference project claims, and where: to be set beside measurements, never assumed.

The project is "perfect-cell-classification" (github.com/ALFIE-SADMAN/perfect-cell-classification, commit d5d8bbb).
`README.md` is its front page; MODEL_ANALYSIS.md, the notebook and results/ lie in its "Assignment 3 - material".
"""

from __future__ import annotations

from dataclasses import dataclass

COMPARISON = "results/model_comparison_detailed.csv"
SUMMARY = "MODEL_ANALYSIS.md, Model Architecture Summary"


@dataclass(frozen=True)
class Claim:
    """One claim. `kind` says how it is tested, on the runs of `experiment`.

    "best": accuracy of each run's best epoch, %, as the reference picks it. "difference": final accuracy of
    `experiment` less that of `against`, points. "f1": macro F1. "parameters": of the network named `experiment`.
    "memory": GB at the training's peak, on a GPU at the reference's size. "": by nothing that a run here records.
    value: in `unit`; rounding: half a unit of the last digit that is stated. elsewhere: what its other files say.
    """

    key: str
    claim: str
    stated: str
    value: float
    rounding: float
    unit: str
    source: str
    elsewhere: str
    kind: str = ""
    experiment: str = "main"
    against: str = ""


def _accuracy(experiment: str, title: str, value: float, source: str, final: str) -> Claim:
    elsewhere = f"{final} % in the final epoch ({COMPARISON})"
    stated, key = f"{value:.2f} %", f"{experiment}_accuracy"
    return Claim(
        key, f"{title}, validation, best epoch", stated, value, 0.005, "%", source, elsewhere, "best", experiment
    )


def _gain(key: str, what: str, stated: str, source: str, elsewhere: str, over: str, experiment: str = "main") -> Claim:
    value, rounding = float(stated), 0.5 * 10 ** -len(stated.partition(".")[2])
    elsewhere = f"{elsewhere} (MODEL_ANALYSIS.md, Ablation Study Results)"
    return Claim(key, what, stated, value, rounding, "points", source, elsewhere, "difference", experiment, over)


def _parameters(network: str, title: str, stated: str, value: int, source: str, elsewhere: str, key: str = "") -> Claim:
    elsewhere = f"{elsewhere} ({SUMMARY})"
    key, claim = f"{key or network}_parameters", f"{title}, parameters"
    return Claim(key, claim, stated, value, 0.5, "", source, elsewhere, "parameters", network)


KEY = "README.md, Key Results"
IMPROVEMENTS = "README.md, Performance Improvements"
MODELS = "README.md, Model Comparison"

CLAIMS = (
    _accuracy("main", "DeepEfficientNet", 99.38, KEY, "99.06"),
    _accuracy("simple_cnn", "SimpleCNN", 75.62, MODELS, "75.16"),
    _accuracy("resnet18", "ResNet-18", 84.69, MODELS, "76.41"),
    _accuracy("efficientnet_lite", "EfficientNetLite", 96.25, MODELS, "91.56"),
    Claim(
        *("main_f1", "DeepEfficientNet, macro F1", "0.994", 0.994, 0.0005, "", MODELS),
        "0.984 (results/model_comparison_4models.json)",
        "f1",
    ),
    Claim(
        *("test_accuracy", "DeepEfficientNet, hidden test set", "98.0 %", 98.0, 0.05, "%", KEY),
        "99.38 % (MODEL_ANALYSIS.md, Key Takeaways)",
    ),
    _gain("se_gain", "Squeeze-and-excitation", "+2.5", IMPROVEMENTS, "+2.57, 96.81 to 99.38", "no_se"),
    _gain("reg_gain", "Regularisation", "+4.38", IMPROVEMENTS, "+4.26", "reg_none"),
    _gain(
        *("smoothing_gain", "Label smoothing, over none", "+1.9", "README.md, Training Strategy", "+2.19"),
        "reg_none",
        "reg_label_smoothing",
    ),
    _gain("cosine_gain", "Cosine schedule", "+3.29", IMPROVEMENTS, "+2.32 over a constant rate", "lr_constant"),
    _gain("aug_gain", "Augmentation", "+3.6", IMPROVEMENTS, "+7.0", "aug_none"),
    # The blocks that its report describes, not ours, whose depth was chosen to reach the stated number.
    _parameters("as_described", "DeepEfficientNet", "1,840,228", 1_840_228, COMPARISON, "6.3 M", key="main"),
    _parameters("simple_cnn", "SimpleCNN", "26,084,104", 26_084_104, COMPARISON, "2.1 M"),
    _parameters("resnet18", "ResNet-18", "11,180,616", 11_180_616, COMPARISON, "11.2 M"),
    # Nothing says how it is built: ours was fitted to this number, which it cannot test.
    Claim(
        *("efficientnet_lite_parameters", "EfficientNetLite, parameters", "0.55 M", 550_000, 5_000, "", MODELS),
        f"4.8 M ({SUMMARY})",
    ),
    Claim(
        *("training_time", "Training, RTX 4080 SUPER", "8 min, 50 epochs", 8.0, 0.5, "min", KEY),
        "90 min, 30 epochs (MODEL_ANALYSIS.md, Training Efficiency Analysis)",
    ),
    Claim(
        *("inference_time", "Inference, RTX 4080 SUPER", "8.3 ms an image", 8.3, 0.05, "ms", KEY),
        "147 images/s, about 7 ms (MODEL_ANALYSIS.md, Production Deployment Considerations)",
    ),
    Claim(
        *("memory", "Peak GPU memory", "4.2 GB", 4.2, 0.05, "GB", KEY),
        "4.2 GB, of a model of 6.3 M parameters (MODEL_ANALYSIS.md, Memory Usage)",
        "memory",
    ),
    Claim(
        *("mixed_precision", "Mixed precision, speedup", "1.5 times", 1.5, 0.05, "times", "README.md, Core Components"),
        "2 times (MODEL_ANALYSIS.md, Computational Resources)",
    ),
    Claim(
        *("learning_rate", "Learning rate", "0.001", 1e-3, 5e-4, "", "README.md, Training"),
        "0.0003 (MODEL_ANALYSIS.md, Optimizer; TrainingConfig in the notebook)",
    ),
    Claim(
        *("se_reduction", "Squeeze-and-excitation, reduction", "4", 4, 0.5, "", "its report, architecture"),
        "16 (MODEL_ANALYSIS.md, DeepEfficientNet)",
    ),
)
