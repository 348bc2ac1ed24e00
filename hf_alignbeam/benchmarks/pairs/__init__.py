"""What a guard costs for one pair of models, and how exact it is.

* `build_cost`: `alignbeam bench --build`: the time and the memory of a first guard, a second one, and one of a later process.
* `steered_steps`: `alignbeam bench --speed --model A --anchor B`: a steered step, against the steps of both models alone.
* `sampled_fidelity`: `alignbeam bench --fidelity --model A --anchor B`: the distance of each rule to the exact translation.
"""
