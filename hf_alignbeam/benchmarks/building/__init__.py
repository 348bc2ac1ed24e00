"""What building a guard costs before it is first used.

* `build_cost`: `alignbeam bench --build`: the time and the memory of a first guard, a second one, and one of a later process.
"""
