"""Words of a report, explained for readers who do not know the field."""

TERMS = {
    "Last layer": "The layer that turns features into outputs. A Bayesian one has a distribution over its weights, the "
    "posterior, and not "
    "one value for each.",
    "Posterior": "What is believed of the weights after the data; the prior is what was believed before.",
    "Aleatoric uncertainty": "Noise of the target that no amount of data removes.",
    "Epistemic uncertainty": "What the fit does not know yet; it shrinks with more training rows.",
    "NLL, nats": "Negative log likelihood: minus the logarithm of the probability (or density) that was given to what "
    "came true. It "
    "punishes being wrong, and most of all being sure and wrong. Its unit, with natural logarithms, is the nat.",
    "Brier score": "Squared distance of the probabilities from what came true, 0 for a prophet.",
    "ECE": "Expected calibration error: how far confidence and share of right decisions are apart, averaged over bins "
    "of confidence. "
    "It is above zero by chance alone, the more so the fewer rows there are.",
    "Temperature": "One number that makes all probabilities sharper or softer, found on rows that were not fitted.",
    "Plain head": "The same layer with one value for each weight, as usual in neural networks.",
    "Standard error": "By how much a score would vary with other rows of the same kind; two of them make a difference "
    "worth believing.",
    "ELBO": "Evidence lower bound: what variational inference maximises. The log evidence, which it bounds, is the "
    "probability of all "
    "training targets together.",
    "Detector, alarm": "A row raises an alarm if it is further from the known rows than nearly all of the rows that the "
    "threshold comes from. "
    "Of known rows at most the stated share do.",
    "AUROC": "Probability that of two rows, one of each kind, the score puts the right one higher; one half is a coin flip.",
}
