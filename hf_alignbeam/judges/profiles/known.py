from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE, SAFE_UNSAFE, YES_NO

PROFILES = (SAFE_UNSAFE, YES_NO, ONE_TO_FIVE)


def find_profile(a, b):
    return None


def named_profile(n):
    for p in PROFILES:
        if p.name == n:
            return p
    raise ValueError("`profile` must be one of")
