"""Short word problems over a running quantity: a task on which RL can be watched to learn on two cores.

"Tom has 25 apples . finds 3 . sells 4 . how many ?" is answered by ``25+3=28;28-4=24;\\boxed{24}``.

Everything is a pure function of a seed and an index. A problem belongs to the held-out split by a hash of its
text, so that neither the supervised stage nor RL ever sees one that is measured, whatever their seeds.

The head-room is designed in: demonstrations always calculate correctly, and use the right operator for
:data:`SHOWN_VERBS`, but toss a coin for :data:`DISCOVERED_VERBS`. A policy trained on them has the format and
the arithmetic and solves (1/3) Σ_{n=2..4} 0.75^n = 43 % of the problems without a wrong operator, 45 % with
those whose mistakes cancel; the other operators can only be learned from the reward.

There are two tasks of the same form (:data:`TASKS`). In ``spread`` any event may have a verb of
:data:`DISCOVERED_VERBS`, so that the tokens that decide lie anywhere, as a rule early. In ``late`` the last event alone
has one, and always: all steps before are easy, and one token near the end decides. A coin would teach the policy there
not to look at the last verb at all, and RL alone hardly makes it look; so in ``late`` demonstrations have a verb's
operator right in two thirds of all cases, or in one third (:data:`MISLEADING_VERBS`): the warm start solves 50 %.
"""

import random
import re
from typing import TYPE_CHECKING, Literal

from app.data.problems import Problem
from app.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Split = Literal["train", "heldout"]
Task = Literal["spread", "late"]
TASKS: tuple[Task, ...] = ("spread", "late")
Operator = Literal["+", "-"]
OPERATORS: tuple[Operator, ...] = ("+", "-")

_NAMES = "Tom Ann Ben Eva Max Lea Sam Mia Leo Zoe Jim Kim Dan Amy Bob Sue"
_NOUNS = "apples pears plums nuts figs eggs coins books cards pens shells stones beads stamps balls keys cups hats"
NAMES, NOUNS = tuple(_NAMES.split()), tuple(_NOUNS.split())
SHOWN_VERBS: dict[str, Operator] = {
    **dict.fromkeys(("finds", "buys", "gets"), "+"),
    **dict.fromkeys(("sells", "loses", "eats"), "-"),
}
DISCOVERED_VERBS: dict[str, Operator] = {
    **dict.fromkeys(("earns", "wins", "picks"), "+"),
    **dict.fromkeys(("lends", "drops", "breaks"), "-"),
}
VERBS: dict[str, Operator] = {**SHOWN_VERBS, **DISCOVERED_VERBS}

EVENTS = (2, 3, 4)
LARGEST_AMOUNT = 9
LARGEST_QUANTITY = 99
MISLEADING_VERBS = ("wins", "lends", "breaks")
"""Verbs of :data:`DISCOVERED_VERBS` whose operator most demonstrations of ``late`` have wrong."""
HELDOUT_SHARE = 10
"""One problem text in this many is held out."""

PAD, EOS, UNKNOWN, USER, ASSISTANT = "<pad>", "<eos>", "<unk>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<assistant>{{ message['content'] }}<eos>"
    "{% else %}{{ raise_exception('only the roles user and assistant are known here') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def vocabulary() -> list[str]:
    """The 67 tokens other than the special ones, in the order of their ids.

    A token carries the spaces that always stand beside it (``" has "``, ``" apples"``, ``"finds "``), digits
    and
    signs carry none: joining the tokens gives back the text exactly, and no token is spent on a space.
    """
    words = [*NAMES, " has ", *(f" {noun}" for noun in NOUNS), *(f"{verb} " for verb in VERBS)]
    return ["\\boxed{", "}", "=", ";", "+", "-", *"0123456789", " . ", "how", " many", " ?", *words]


TOKEN_PATTERN = "|".join(re.escape(token).replace("\\ ", " ") for token in vocabulary())
"""Regular expression that cuts a text into tokens; no token is the beginning of another one."""


def is_heldout(text: str) -> bool:
    """Whether this problem text belongs to the held-out split."""
    return derive_seed("heldout", text) % HELDOUT_SHARE == 0


def problem(seed: int, index: int, split: Split = "train", task: Task = "spread") -> Problem:
    """Problem ``index`` of a split of a task: a pure function of its arguments.

    Every quantity on the way lies in [0, 99], also for wrong operators: the first is at least 9 times the
    number of events away from both ends.
    """
    attempt = 0
    while True:
        text = _problem_text(random.Random(derive_seed("synthetic", seed, index, attempt)), task)
        if is_heldout(text) == (split == "heldout"):
            identifier = f"synthetic-{'late-' if task == 'late' else ''}{split}-{seed}-{index}"
            return Problem(id=identifier, problem=text, answer=answer(text), source="synthetic")
        attempt += 1


def answer(text: str) -> str:
    """The gold answer of a problem text. Raises ValueError where it is not one of this task's problems."""
    quantity, events = _parse(text)
    for verb, amount in events:
        quantity = _apply(quantity, VERBS[verb], amount)
    return str(quantity)


def demonstration(text: str, seed: int, task: Task = "spread") -> str:
    """The completion that the supervised stage imitates: right arithmetic, and operators as the module says."""
    coin = random.Random(derive_seed("demonstration", seed, text))
    quantity, events = _parse(text)
    steps = []
    for verb, amount in events:
        operator = SHOWN_VERBS[verb] if verb in SHOWN_VERBS else _guess(coin, verb, task)
        result = _apply(quantity, operator, amount)
        steps.append(f"{quantity}{operator}{amount}={result};")
        quantity = result
    return "".join(steps) + f"\\boxed{{{quantity}}}"


def _guess(coin: random.Random, verb: str, task: Task) -> Operator:
    if task == "spread":
        return coin.choice(OPERATORS)
    right = coin.random() < (1 / 3 if verb in MISLEADING_VERBS else 2 / 3)
    return next(operator for operator in OPERATORS if (operator == VERBS[verb]) == right)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A word-level tokenizer of 72 tokens with a chat template.

    ``decode(encode(text)) == text`` for this task's prompts and completions.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, EOS, UNKNOWN, USER, ASSISTANT]
    ids = {token: index for index, token in enumerate([*special, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _problem_text(draw: random.Random, task: Task) -> str:
    count = draw.choice(EVENTS)
    reach = count * LARGEST_AMOUNT
    start = draw.randint(reach, LARGEST_QUANTITY - reach)
    verbs = [VERBS] * count if task == "spread" else [*[SHOWN_VERBS] * (count - 1), DISCOVERED_VERBS]
    events = [f"{draw.choice(tuple(choice))} {draw.randint(1, LARGEST_AMOUNT)} . " for choice in verbs]
    return f"{draw.choice(NAMES)} has {start} {draw.choice(NOUNS)} . {''.join(events)}how many ?"


def _apply(quantity: int, operator: str, amount: int) -> int:
    return quantity + amount if operator == "+" else quantity - amount


_EVENT = rf"({'|'.join(VERBS)}) ([0-9]+) \. "
_HEAD = rf"(?:{'|'.join(NAMES)}) has ([0-9]+) (?:{'|'.join(NOUNS)}) \. "
_WHOLE = re.compile(rf"{_HEAD}((?:{_EVENT})+)how many \?")


def _parse(text: str) -> tuple[int, list[tuple[str, int]]]:
    found = _WHOLE.fullmatch(text)
    if found is None:
        raise ValueError(f"not a problem of the synthetic task: {text!r}")
    return int(found[1]), [(verb, int(amount)) for verb, amount in re.findall(_EVENT, found[2])]
