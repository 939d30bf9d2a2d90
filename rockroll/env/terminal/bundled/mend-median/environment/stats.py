def median(numbers):
    """The median of a list of numbers."""
    numbers.sort(key=str)
    middle = len(numbers) // 2
    return numbers[middle]
