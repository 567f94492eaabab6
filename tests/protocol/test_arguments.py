"""What docstrings say of arguments is written once, and stands in every docstring."""

import inspect

import pytest

from jtssm import solvers
from jtssm.protocol.arguments import SHARED, described, documented


def made(net, *, number, lengths=None, share=50.0, exactly=False, loss=""):
    """A method. It has a second sentence.

    Args:
      net: the network.  number: a number: of things.
      lengths: of
        100% `steps`. None: all.  share, exactly: both
        of them.

    Raises:
      ValueError: never.
    """


OWN = {
    "net": "the network.",
    "number": "a number: of things.",
    "lengths": "of 100% `steps`. None: all.",
    "share": "both of them.",
    "exactly": "both of them.",
}


def test_texts_of_arguments_are_read_from_the_docstring():
    assert described(made) == OWN


def test_a_docstring_is_completed_in_the_order_of_the_signature():
    done = documented({"share": "another's text."})(made)
    assert done is made
    assert described(made) == OWN | {"loss": SHARED["loss"]}
    assert list(described(made)) == list(inspect.signature(made).parameters)
    assert made.__doc__.startswith("A method. It has a second sentence.\n\nArgs:\n  net: the")
    assert made.__doc__.endswith("`losses.Loss`.\n\nRaises:\n  ValueError: never.")


def test_an_argument_that_nothing_describes_is_refused():
    def bare(net, *, number):
        """A method.

        Args:
          net: the network.
        """

    with pytest.raises(ValueError, match=r"bare: expected a text of every argument; .*'number'"):
        documented()(bare)


@pytest.mark.parametrize("method", solvers.METHODS)
def test_help_shows_every_argument_of_every_constructor(method):
    make = solvers.METHODS[method]
    texts = described(make)
    assert list(texts) == list(inspect.signature(make).parameters)
    assert texts["precision"] == SHARED["precision"]
    assert all(len(line) <= 106 for line in inspect.getdoc(make).splitlines())
