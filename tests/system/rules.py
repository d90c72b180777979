"""Rules for tests."""

REPAIR = """
[[rule]]
name = "repair"
match.class = ["corruption", "readonly", "shutdown"]
mode = "auto"
cooldown = "0s"
flap = "0s"
budget = { node = 4, device = 4 }
healthy = "500ms"
[[rule.step]]
do = "fsck"
strategy = "STRATEGY"
max_write_pause = "60s"
[[rule.step]]
do = "notify"
to = ["ops"]
"""

TELL = """
[[rule]]
name = "tell"
match.class = "*"
[[rule.step]]
do = "notify"
to = ["ops"]
"""


def repair(strategy: str = "clone", **replaced: str) -> str:
    """The usual rule; `replaced` exchanges values of keys, in TOML."""
    text = REPAIR.replace("STRATEGY", strategy)
    if strategy != "clone":
        text = text.replace('max_write_pause = "60s"\n', "")
    for key, value in replaced.items():
        lines = [
            f"{key} = {value}" if line.split(" =")[0] == key else line for line in text.splitlines()
        ]
        text = "\n".join(lines) + "\n"
    return text


def channel(url: str, secret_file: object) -> str:
    """A channel for fswatchd.toml."""
    return f'[channel.ops]\nkind = "webhook"\nurl = "{url}"\nsecret_file = "{secret_file}"\n'
