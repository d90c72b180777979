"""What a tool has said, as people get it."""

from fswatchd.repair.check import CheckResult


def test_names_in_a_tools_output_do_nothing_to_a_terminal() -> None:
    output = 'entry "\x1b]0;mine\x07a\udcff" in directory inode 131\nrebuilding\n'
    said = CheckResult(returncode=1, output=output, duration_s=0.1, fixed=True)
    assert said.shown(1000) == (
        'entry "\\x1b]0;mine\\x07a\\xff" in directory inode 131\nrebuilding'
    )


def test_the_end_of_a_long_output_is_shown() -> None:
    said = CheckResult(returncode=1, output="first\n" * 1000 + "last\n", duration_s=0.1)
    assert said.shown(17) == "first\nfirst\nlast"
