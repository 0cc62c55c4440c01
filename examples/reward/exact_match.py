"""The reward of the arithmetic task: 1.0 if the response is exactly the answer, else 0.0.

verl calls :func:`compute_score` through ``reward.custom_reward_function``. Rows of other data sources (GSM8K and the
rest of the list in ``verl.utils.reward_score``) get verl's own default, so the same command trains on them.
"""

ARITHMETIC = "maspo/arithmetic"


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Score one response; the signature is verl's."""
    if data_source == ARITHMETIC:
        return float(solution_str.strip() == ground_truth)

    from verl.utils.reward_score import default_compute_score  # heavy, and not needed for the arithmetic task

    return default_compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
