"""One test a case, where a loop of sub-tests would be one test: tests run side by side, and the suite takes as long as its
slowest one."""
import itertools


def over(*values):
    """Marks a method that takes one of each of the values: it becomes one test for every combination."""
    def mark(method):
        method.cases = list(itertools.product(*map(list, values)))
        if not method.cases:
            raise ValueError(f"{method.__qualname__}: got no case, expected at least one")
        return method
    return mark


def one_test_a_case(test_class):
    """Class decorator: replaces the marked methods by their cases, each named after its values."""
    for name, method in list(vars(test_class).items()):
        if not hasattr(method, "cases"):
            continue
        delattr(test_class, name)
        for case in method.cases:
            case_name = "_".join([name, *map(_named, case)])
            if hasattr(test_class, case_name):
                raise ValueError(f"{test_class.__name__}.{case_name}: got two cases of this name")
            setattr(test_class, case_name, _bound(method, case))
    return test_class


def _named(value):
    """`torch.float32` as float32, a tuple's values one after the other."""
    return "_".join(map(_named, value)) if isinstance(value, tuple) else str(value).rpartition(".")[2]


def _bound(method, case):
    def test(self):
        method(self, *case)
    test.__doc__ = method.__doc__
    return test
