"""Writes durations and shares for people, in plans and in the messages of a sweep."""


def format_duration(seconds: float) -> str:
    """Write a duration for people: "45 s", "12 min", "3 h 5 min", "1,400 h"."""
    if seconds < 0.5:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 6000 else f"{minutes / 60:,.0f} h"


def format_range(seconds: float, low: float, high: float) -> str:
    """Write an estimated duration for people, with its bounds where they differ."""
    about, least, most = map(format_duration, (seconds, low, high))
    if least == most:
        return least if seconds < 0.5 else f"about {about}"
    return f"about {about} ({least} to {most})" if seconds >= 0.5 else f"at most {most}"


def percent(share: float) -> str:
    """Write a share for people: "0.4 %", "12 %"."""
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def printable(text: str) -> str:
    """Escape line breaks and other signs that move the cursor or show nothing."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(text: str, most: int = 40) -> str:
    """Return a text of at most that many characters; dots stand for the rest."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
