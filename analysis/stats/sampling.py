"""pass@k: the chance that one of k answers is right, from n of which c are. Scores of all n: `opd.grading.scores`."""

from math import comb, nan


def pass_at_k(correct: int, answers: int, *, k: int) -> float:
    """pass@k = 1 - C(n - c, k) / C(n, k): the share of the sets of k of the n answers that hold a right one.

    Unbiased, since the sets are drawn without replacement (Chen et al., Evaluating large language models trained on
    code, 2021). pass@1 is mean@n and pass@n is best@n. NaN where there are fewer than k answers.

    Raises:
        ValueError: where `correct` is not from 0 to `answers`, or `k` is less than 1.
    """
    if not 0 <= correct <= answers or k < 1:
        raise ValueError(f"pass@k of {correct} of {answers} answers with k = {k}")
    return 1 - comb(answers - correct, k) / comb(answers, k) if answers >= k else nan
