"""Tables of names: Unicode signs, LaTeX commands and their synonyms, functions, letters, words."""


def listed(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.split()


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(listed(text))


#: Stands for a thousands separator that cannot be a comma of a list (``{,}`` and ``,\!``).
GROUP_MARK = "\ue000"
#: Stands for the end of a matrix row.
ROW_MARK = "\ue010"
#: Stands for a currency sign, whose meaning differs from that of a math delimiter.
CURRENCY = {"$": "\ue001", "€": "\ue002", "£": "\ue003", "¥": "\ue004", "₹": "\ue005"}
#: The Greek small letters in the order of their code points.
_SMALL_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega"
)
_CAPITAL_GREEK = "ΓGamma ΔDelta ΘTheta ΛLambda ΞXi ΠPi ΣSigma ΦPhi ΨPsi ΩOmega"
SYMBOLS = {
    **dict.fromkeys("−‐‑‒–—―﹣－➖", "-"),
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙•‧", r"\cdot "),
    "÷": r"\div ",
    "∕": "/",
    "⁄": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ",
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    "≠": r"\ne ",
    "≡": r"\equiv ",
    **dict.fromkeys("≈≃≅", r"\approx "),
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    **dict.fromkeys("∅⌀", r"\emptyset "),
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    **dict.fromkeys("°º˚", r"\degree "),
    **dict.fromkeys("′’‘ʹ´", "'"),
    "″": "''",
    **dict.fromkeys("“”„", '"'),
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∣": "|",
    "‖": r"\|",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "ℏ": r"\hbar ",
    "µ": r"\mu ",
    "∂": r"\partial ",
    "∇": r"\nabla ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "→": r"\to ",
    "∶": ":",
    "，": ",",
    "、": ",",
    "；": ";",
    "。": ".",
    "…": r"\ldots ",
    "ϕ": r"\phi ",
    "ε": r"\epsilon ",
    "ı": r"\imath ",
    "⊤": r"\top ",
}
SYMBOLS.update({chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(listed(_SMALL_GREEK))})
SYMBOLS.update({name[0]: f"\\{name[1:]} " for name in listed(_CAPITAL_GREEK)})

SYNONYMS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "displayfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), "le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), "ge"),
    **dict.fromkeys(("neq",), "ne"),
    **dict.fromkeys(("approxeq", "simeq", "cong"), "approx"),
    **dict.fromkeys(("varnothing", "O"), "emptyset"),
    **dict.fromkeys(("dots", "cdots", "dotsc", "dotsb", "dotsm", "dotso"), "ldots"),
    **dict.fromkeys(("ast", "star"), "times"),
    **dict.fromkeys(("backslash",), "setminus"),
    **dict.fromkeys(("mid", "vert", "lvert", "rvert"), "|"),
    **dict.fromkeys(("Vert", "lVert", "rVert"), "|"),
    **dict.fromkeys(("lbrace",), "{"),
    **dict.fromkeys(("rbrace",), "}"),
    **dict.fromkeys(("lbrack",), "["),
    **dict.fromkeys(("rbrack",), "]"),
    **dict.fromkeys(("varepsilon",), "epsilon"),
    **dict.fromkeys(("varphi",), "phi"),
    **dict.fromkeys(("vartheta",), "theta"),
    **dict.fromkeys(("varrho",), "rho"),
    **dict.fromkeys(("deg", "textdegree", "degrees"), "degree"),
    **dict.fromkeys(("arccosh",), "arcosh"),
    **dict.fromkeys(("imath", "i"), "iunit"),
    **dict.fromkeys(("infin",), "infty"),
    **dict.fromkeys(("wedge",), "land"),
    **dict.fromkeys(("vee",), "lor"),
    **dict.fromkeys(("colon",), ":"),
    **dict.fromkeys(("R",), "reals"),
    **dict.fromkeys(("bmod", "mod"), "pmod"),
}
BEFORE_DELIMITERS = names(
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr mleft mright"
)
DROPPED = BEFORE_DELIMITERS | names(
    "displaystyle textstyle scriptstyle limits nolimits bf rm it tt sf sl cal em boldmath normalfont centering hline "
    "noindent quad qquad enspace thinspace medspace thickspace negthinspace hfill allowbreak nobreak ensuremath null "
    "strut vphantom unboldmath large Large small"
)
TEXT = names(
    "text mbox textbf textit textrm textnormal textsf texttt textsc textup emph operatorname hbox mathop mathrm"
)
FONTS = names(
    "mathbf boldsymbol bm mathit mathsf mathtt mathcal mathscr mathfrak underline boxed fbox pmb vec "
    "textcolor color bold mathbin mathrel mathord cancel smash overrightarrow"
)
DISCARDED_ARGUMENT = names("phantom hphantom hspace vspace label tag color textcolor kern mspace")

FUNCTIONS = names(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch arsinh arcosh "
    "artanh asin acos atan asinh acosh atanh exp ln log lg sgn sign erf Re Im arg cis max min gcd lcm det abs"
)
SPELLED = {"tg": "tan", "ctg": "cot", "arctg": "arctan", "cosec": "csc", "asin": "arcsin", "acos": "arccos"}
SPELLED |= {"atan": "arctan", "asinh": "arsinh", "acosh": "arcosh", "atanh": "artanh", "arcsinh": "arsinh"}
SPELLED |= {"arctanh": "artanh", "arccosh": "arcosh", "sign": "sgn"}
GREEK = names(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega varsigma ell hbar Re Im aleph mho nabla partial odot oplus "
    "otimes prime triangle angle perp parallel bot top square dagger flat sharp natural"
)
_LATEX_ONLY = names("ell nabla partial odot oplus prime square angle triangle perp dagger top bot")
WORDS = (GREEK - _LATEX_ONLY - {"nu", "mu", "xi"}) | {"pi", "infty", "sqrt"}
INFINITIES = frozenset(("inf", "infinity", "Infinity", "oo", "Inf"))
STOP_WORDS = names("the and for all any are not has iff let but per its one two set sum gives where")
VOWELS = frozenset("aeiouy")
