"""The formulas of the methods as TeX. A test reads those of divergences back and holds them against the code."""

# f(r), r = π_student / π_reference, and the weight that the policy gradient gives a token, by choice of `divergence`.
DIVERGENCES = {
    "reverse_kl": (r"r \log r", r"-\log r"),
    "forward_kl": (r"-\log r", r"\frac{1}{r} - 1"),
    "jeffreys": (r"(r - 1) \log r", r"\frac{1}{r} - 1 - \log r"),
    "jensen_shannon": (
        r"\frac{1}{2} \left( r \log r - (r + 1) \log \left( \frac{r + 1}{2} \right) \right)",
        r"-\frac{1}{2} \log \left( \frac{2 r}{1 + r} \right)",
    ),
    "generalized_jensen_shannon": (
        r"\frac{(1 - \beta) r \log \left( \frac{r}{m} \right) - \beta \log \left( m \right)}{\beta (1 - \beta)}"
        r", \quad m = \beta + (1 - \beta) r",
        r"-\frac{1}{\beta} \log \left( \frac{r}{m} \right)",
    ),
    "hellinger": (r"(\sqrt{r} - 1)^{2}", r"\frac{1}{\sqrt{r}} - 1"),
    "tsallis": (r"\frac{r^{\alpha} - r}{\alpha - 1}", r"\frac{\alpha (1 - r^{\alpha - 1})}{\alpha - 1}"),
    "alpha_divergence": (
        r"\frac{r^{\alpha} - \alpha r + \alpha - 1}{\alpha (\alpha - 1)}",
        r"\frac{1 - r^{\alpha - 1}}{\alpha - 1}",
    ),
    "skew_kl": (
        r"r \log \left( \frac{r}{m} \right), \quad m = \alpha r + 1 - \alpha",
        r"\log \left( \frac{m}{r} \right) + \alpha \left( \frac{r}{m} - 1 \right)",
    ),
    "skew_forward_kl": (
        r"-\log \left( m \right), \quad m = \alpha + (1 - \alpha) r",
        r"(1 - \alpha) \left( \frac{1}{m} - 1 \right)",
    ),
    "total_variation": (r"\frac{1}{2} |r - 1|", r"-\frac{1}{2} \frac{r - 1}{|r - 1|}"),
    "k2_naive": (r"r \log r", r"-\frac{1}{2} (\log r)^{2}"),
    "k3_naive": (r"r \log r", r"1 - \frac{1}{r} - \log r"),
}

# What the others compute, by group and choice; where a choice is not here, its sentence says all.
OTHERS = {
    ("ensemble", "single"): r"\pi_T = \pi_1",
    ("ensemble", "arithmetic"): r"\pi_T = \sum_{k} w_k \pi_k",
    ("ensemble", "geometric"): r"\log \pi_T = \sum_{k} w_k \log \pi_k",
    ("ensemble", "advantage_mean"): r"A = \sum_{k} w_k A_k",
    ("ensemble", "soft_switch"): r"\pi_T = (1 - s) \pi_k + s \pi_{k+1}",
    (
        "rollout_correction",
        "tis",
    ): r"w = \min ( \max ( \rho, \text{low} ), \text{high} ), \quad \rho = \pi_\theta / \pi_\text{rollout}",
    (
        "rollout_correction",
        "icepop",
    ): r"w = \rho \, [ \text{low} \le \rho \le \text{high} ], \quad \rho = \pi_\theta / \pi_\text{rollout}",
    (
        "rollout_correction",
        "mis",
    ): r"w = [ \text{low} \le \rho \le \text{high} ], \quad \rho = \pi_\theta / \pi_\text{rollout}",
    ("support", "sampled"): r"\nabla L = - A(r) \, \nabla \log \pi_\theta(y)",
    ("support", "full"): r"L = \sum_{v} \pi_T(v) \, f ( \pi_\theta(v) / \pi_T(v) )",
}
