def worst_of_readings(pairs, judge):
    return judge(pairs)
