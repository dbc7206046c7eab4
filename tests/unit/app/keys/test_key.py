"""Keys in TOML: each problem is one sentence, and no sentence quotes a value."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime

import pytest

from app.keys.key import MAX_KEYS, Key, KeysError, digest_of, new_secret, parse_keys

DIGEST = "ab" * 32
GOOD = f'[a]\nsha256 = "{DIGEST}"\nscopes = ["predict"]\ntasks = ["*"]\n'
SECRET = "dbk_this-must-never-be-shown"


def test_a_key_has_its_defaults() -> None:
    (key,) = parse_keys(GOOD).values()
    assert key == Key(name="a", sha256=DIGEST, scopes=frozenset({"predict"}), tasks=("*",))
    assert (key.rows_per_minute, key.requests_per_minute, key.queue_share) == (None, None, None)
    assert key.burst_s == 60
    assert key.expires_at is None


def test_all_fields_of_a_key() -> None:
    text = GOOD + (
        "requests_per_minute = 6\nrows_per_minute = 600\nburst_s = 1.5\nqueue_share = 0.5\n"
        "expires = 2027-01-31\n"
    )
    key = parse_keys(text)["a"]
    assert (key.requests_per_minute, key.rows_per_minute) == (6, 600)
    assert (key.burst_s, key.queue_share, key.expires) == (1.5, 0.5, date(2027, 1, 31))
    assert key.expires_at == datetime(2027, 1, 31, tzinfo=UTC).timestamp()


def test_a_key_fits_on_one_line() -> None:
    line = f'a = {{sha256 = "{DIGEST}", scopes = [], tasks = []}}'
    assert parse_keys(line)["a"].scopes == frozenset()
    assert parse_keys("") == {}


def test_the_digest_is_never_shown() -> None:
    (key,) = parse_keys(GOOD).values()
    assert DIGEST not in repr(key)
    assert DIGEST not in str(key)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a", "not TOML: "),
        (f'sha256 = "{SECRET}"', "a value stands outside of a table"),
        (f'[{SECRET}]\nsha256 = "x"', "the name of a key begins with dbk_"),
        ('["a b"]\nsha256 = "x"', "1 to 64 letters, digits, hyphens and underscores"),
        (f'[a]\nscopes = ["{SECRET}"]\n', "key 'a': "),
        (GOOD.replace(DIGEST, SECRET), "sha256 must be the 64 hexadecimal digits"),
        (GOOD.replace(DIGEST, hashlib.sha256(b"").hexdigest()), "sha256 is that of an empty"),
        (GOOD.replace(DIGEST, DIGEST.upper()), "sha256 must be the 64 hexadecimal digits"),
        (GOOD.replace('"predict"', f'"{SECRET}"'), "scopes.0 must be 'predict' or 'admin'"),
        (GOOD.replace('["*"]', f'"{SECRET}"'), "tasks must be a list"),
        (GOOD.replace('["*"]', '[""]'), "tasks.0 string should have at least 1 character"),
        (GOOD.replace("tasks = ", "task = "), "Did you mean 'tasks'"),
        (GOOD + f'secret = "{SECRET}"', "'secret' is no field of a key"),
        (GOOD + 'name = "b"', "'name' is no field of a key"),
        (GOOD + f'rows_per_minute = "{SECRET}"', "rows_per_minute must be a valid integer"),
        (GOOD + "rows_per_minute = 0", "rows_per_minute must be greater than or equal to 1"),
        (GOOD + "rows_per_minute = true", "rows_per_minute must be a valid integer"),
        (GOOD + "requests_per_minute = 7000000", "less than or equal to 6000000"),
        (GOOD + "queue_share = 1.5", "queue_share must be less than or equal to 1"),
        (GOOD + "queue_share = nan", "queue_share must be"),
        (GOOD + "burst_s = 0.5", "burst_s must be greater than or equal to 1"),
        (GOOD + f'expires = "{SECRET}"', "expires must be a valid date"),
        (GOOD + "expires = 2027-01-31T10:00:00Z", "expires must be a valid date"),
        (GOOD + GOOD.replace("[a]", "[b]"), "the keys 'a' and 'b' have the same sha256"),
        (GOOD + GOOD, "not TOML: "),
        (GOOD.replace("[a]", "[anonymous]"), "key 'anonymous': has no secret, so no sha256"),
        ('[anonymous]\nscopes = ["admin"]\ntasks = ["*"]', "can't have the scope 'admin'"),
    ],
)
def test_a_problem_is_one_sentence_without_a_value(text: str, said: str) -> None:
    with pytest.raises(KeysError) as caught:
        parse_keys(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_requests_without_a_key_may_have_rights() -> None:
    key = parse_keys('[anonymous]\nscopes = ["predict"]\ntasks = ["sst2"]')["anonymous"]
    assert key.sha256 is None
    assert key.scopes == {"predict"}


def test_a_missing_field_is_named() -> None:
    with pytest.raises(KeysError, match="key 'a': sha256 is missing"):
        parse_keys(GOOD.replace("sha256", "#"))
    with pytest.raises(KeysError, match="key 'a': tasks is missing"):
        parse_keys(GOOD.replace('tasks = ["*"]\n', ""))


def test_keys_are_not_without_number() -> None:
    line = '{} = {{sha256 = "{:064x}", scopes = [], tasks = []}}\n'
    text = "".join(line.format(f"k{n}", n) for n in range(MAX_KEYS + 1))
    with pytest.raises(KeysError, match="1,001 keys, at most 1,000"):
        parse_keys(text)


def test_secrets_are_random_and_fit_into_a_header() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"dbk_[A-Za-z0-9_-]{43}", secret) for secret in made)
    assert digest_of(b"abc") == hashlib.sha256(b"abc").digest()
