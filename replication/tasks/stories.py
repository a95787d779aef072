"""The stories of the word problems: what they ask, what solves them, and what a hasty reader would do instead.

Slots: {a} {b} {c} numbers, {N} {M} names, {o} {p} things. ``operands`` are the two numbers that matter, in the order in
which the equation uses them. ``misled`` says that the keyword heuristics of the shallow solver give a wrong answer.
The variations are those of SVAMP (Patel et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Variation = Literal["plain", "irrelevant_quantity", "reordered_facts", "another_question", "misleading_keyword"]

NAMES = ("Sam", "Ann", "Tom", "Eva", "Ben", "Mia", "Leo", "Zoe", "Max", "Ida", "Jon", "Amy")
THINGS = ("apples", "pears", "books", "coins", "cards", "pens", "cups", "shells", "stamps", "toys", "cakes", "balls")


@dataclass(frozen=True)
class Template:
    name: str
    operation: Literal["+", "-", "*", "/"]
    operands: str
    misled: bool
    variation: Variation
    text: str
    held_out: bool = False


TEMPLATES: tuple[Template, ...] = (
    # Addition
    Template("join", "+", "ab", False, "plain",
             "{N} has {a} {o}. {M} has {b} {o}. How many {o} do they have altogether?"),
    Template("join_aside", "+", "ac", True, "irrelevant_quantity",
             "{N} has {a} {o} and {b} {p}. {M} has {c} {o}. How many {o} do they have altogether?"),
    Template("before_giving", "+", "ab", True, "misleading_keyword",
             "{N} gave {a} {o} to {M}. Now {N} has {b} {o} left. How many {o} did {N} have before?"),
    Template("fewer_than_other", "+", "ab", True, "misleading_keyword",
             "{N} has {a} {o}. That is {b} fewer than {M} has. How many {o} does {M} have?"),
    Template("more_than_other", "+", "ab", True, "misleading_keyword",
             "{N} has {a} {o}. {M} has {b} more {o}. How many {o} does {M} have?"),
    Template("class_total", "+", "ab", False, "another_question",
             "There were {a} boys and {b} girls in a class. Then {c} girls went home. "
             "How many children were there before in total?"),
    # Subtraction
    Template("give", "-", "ab", False, "plain",
             "{N} had {a} {o}. {N} gave {b} {o} to {M}. How many {o} does {N} have left?"),
    Template("give_reordered", "-", "ba", False, "reordered_facts",
             "{N} gave {a} {o} to {M}. Before that {N} had {b} {o}. How many {o} does {N} have left?"),
    Template("give_aside", "-", "ac", True, "irrelevant_quantity",
             "{N} had {a} {o} and {b} {p}. {N} gave {c} {o} to {M}. How many {o} does {N} have left?"),
    Template("compare", "-", "ab", False, "plain",
             "{N} has {a} {o}. {M} has {b} {o}. How many more {o} does {N} have than {M}?"),
    Template("part_of_total", "-", "ab", True, "misleading_keyword",
             "{N} and {M} have {a} {o} altogether. {N} has {b} {o}. How many {o} does {M} have?"),
    Template("missing", "-", "ab", True, "misleading_keyword",
             "{N} wants {a} {o} in total. {N} has {b} {o}. How many {o} are missing?"),
    Template("class_girls", "-", "bc", True, "another_question",
             "There were {a} boys and {b} girls in a class. Then {c} girls went home. How many girls are left?"),
    # Multiplication
    Template("boxes", "*", "ab", False, "plain",
             "{N} has {a} boxes. There are {b} {o} in each box. How many {o} does {N} have?"),
    Template("boxes_total", "*", "ab", True, "misleading_keyword",
             "{N} has {a} boxes with {b} {o} in every box. How many {o} does {N} have altogether?"),
    Template("boxes_aside", "*", "ac", True, "irrelevant_quantity",
             "{N} has {a} boxes and {b} bags. There are {c} {o} in each box. How many {o} are in the boxes?"),
    Template("price", "*", "ab", False, "plain",
             "{N} buys {a} {o} for {b} dollars each. How many dollars does {N} pay?"),
    Template("pages_read", "*", "ab", True, "misleading_keyword",
             "{N} reads {a} pages per day for {b} days. How many pages does {N} read?"),
    # Division
    Template("share", "/", "ab", False, "plain",
             "{N} has {a} {o} to share among {b} friends. How many {o} does one friend get?"),
    Template("share_reordered", "/", "ba", False, "reordered_facts",
             "{N} has {a} friends and wants to share {b} {o} with them. How many {o} does one friend get?"),
    Template("share_aside", "/", "ac", True, "irrelevant_quantity",
             "{N} has {a} {o} and {b} {p}. The {o} are to share among {c} friends. How many {o} does one friend get?"),
    Template("fill_boxes", "/", "ab", True, "misleading_keyword",
             "{N} puts {a} {o} in {b} boxes. How many {o} are in each box?"),
    Template("pages_per_day", "/", "ab", False, "another_question",
             "{N} reads {a} pages in {b} days. How many pages does {N} read per day?"),
    # Held out: never in the corpus of the base, never trained on, measured apart.
    Template("before_giving_reordered", "+", "ab", True, "reordered_facts",
             "Now {N} has {a} {o} left. Before that {N} gave {b} {o} to {M}. How many {o} did {N} have before?", True),
    Template("class_boys", "-", "ac", True, "another_question",
             "There were {a} boys and {b} girls in a class. Then {c} boys went home. How many boys are left?", True),
    Template("give_aside_reordered", "-", "bc", True, "irrelevant_quantity",
             "{N} had {a} {p} and {b} {o}. {N} gave {c} {o} to {M}. How many {o} does {N} have left?", True),
    Template("bags_total", "*", "ab", True, "misleading_keyword",
             "There are {a} bags with {b} {o} in every bag. How many {o} are there altogether?", True),
    Template("price_of_one", "/", "ab", True, "misleading_keyword",
             "{N} pays {a} dollars for {b} {o}. How many dollars does {N} pay for each?", True),
)
