"""Hyper-parameters of every mode of verl that are not the defaults; for the tests, and for the scripts they run."""

# All keys of its own, ``ratio_clip.<mode>_<name>``.
HYPER = {
    "maspo": {
        "sigma_base": 1.5, "alpha": 0.5, "sigma_high": 4.0, "adv_low": 0.9, "adv_high": 1.1,
        "beta_pos": 0.3, "beta_neg": 0.2, "gate_gradient": True,
    },
    "grpo": {},
    "clip_higher": {"clip_ratio_low": 0.15, "clip_ratio_high": 0.35, "clip_ratio_c": 1.6},
    "dac": {"eps_low": 0.1, "eps_high": 0.15, "clip_ratio_c": 1.6},
    "entropy_adv": {
        "alpha": 0.3, "kappa": 3.0, "clip_ratio_low": 0.15, "clip_ratio_high": 0.35, "clip_ratio_c": 1.6,
    },
    "bapo": {
        "adv_ratio_target": 0.9, "ratio_lower_start": 0.5, "ratio_lower_max": 0.9, "ratio_lower_step": 0.1,
        "ratio_upper_start": 1.1, "ratio_upper_max": 2.5, "ratio_upper_step": 0.1, "upper_first": True, "eps": 0.01,
    },
    "sapo": {"tau_pos": 1.5, "tau_neg": 0.7},
}  # fmt: skip
ACTOR_CLIP = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3, "clip_ratio_c": 1.5}
# What a mode has of the actor's clip in place of keys of its own.
SHARED = dict.fromkeys(["maspo", "grpo", "bapo"], list(ACTOR_CLIP)) | {"sapo": ["clip_ratio_c"]}


def overrides_of(ratio_mode):
    """What chooses a mode with these hyper-parameters on verl's command line."""
    keys = {"ratio_mode": ratio_mode} | {f"{ratio_mode}_{name}": value for name, value in HYPER[ratio_mode].items()}
    return [f"actor_rollout_ref.actor.policy_loss.ratio_clip.{key}={value}" for key, value in keys.items()]
