"""Captions: varied English for a scene, attributes left out at times, and the reading of such English."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ltx_trainer.world.scene import Scene
from ltx_trainer.world.vocabulary import BACKGROUNDS, COLOURS, RESIZING, SOUNDS

NOUNS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "circle", "disc"),
    "square": ("square", "square", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "ring", "hoop"),
    "diamond": ("diamond", "diamond", "rhombus"),
}
THINGS = ("object", "shape", "thing")  # where the shape is left open

COLOUR_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in COLOURS} | {
    "cyan": ("cyan", "turquoise"),
    "purple": ("purple", "purple", "violet"),
}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in BACKGROUNDS} | {
    "grey": ("grey", "gray")
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}

# (finite verb, gerund)
VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (
        ("moves left", "moving left"),
        ("slides to the left", "sliding to the left"),
        ("drifts leftwards", "drifting leftwards"),
        ("glides to the left", "gliding to the left"),
        ("travels from right to left", "travelling from right to left"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("slides to the right", "sliding to the right"),
        ("drifts rightwards", "drifting rightwards"),
        ("glides to the right", "gliding to the right"),
        ("travels from left to right", "travelling from left to right"),
    ),
    "up": (
        ("moves up", "moving up"),
        ("rises", "rising"),
        ("floats upwards", "floating upwards"),
        ("climbs", "climbing"),
        ("goes up", "going up"),
    ),
    "down": (
        ("moves down", "moving down"),
        ("sinks", "sinking"),
        ("floats downwards", "floating downwards"),
        ("descends", "descending"),
        ("goes down", "going down"),
    ),
    "bounce": (
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("keeps bouncing", "bouncing again and again"),
        ("hops on the spot", "hopping on the spot"),
        ("bounces in place", "bouncing in place"),
    ),
    "orbit": (
        ("moves in a circle", "moving in a circle"),
        ("circles around", "circling around"),
        ("orbits", "orbiting"),
        ("goes round and round", "going round and round"),
        ("flies in circles", "flying in circles"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("expands", "expanding"),
        ("becomes larger", "becoming larger"),
        ("swells up", "swelling up"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("contracts", "contracting"),
        ("becomes smaller", "becoming smaller"),
        ("dwindles", "dwindling"),
    ),
    "spin": (
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("turns on the spot", "turning on the spot"),
        ("spins in place", "spinning in place"),
        ("rotates about its centre", "rotating about its centre"),
    ),
    "stay": (
        ("stays still", "staying still"),
        ("does not move", "resting"),
        ("stands still", "standing still"),
        ("remains motionless", "remaining motionless"),
        ("stays in place", "staying in place"),
    ),
}

HITS = ("at every bounce", "each time it lands", "with each impact", "whenever it hits the floor")
RINGS: dict[str, tuple[str, ...]] = {
    "ball": ("a thump", "a soft thump", "a low thud"),
    "square": ("a knock", "a wooden knock", "a dry knock"),
    "triangle": ("a ting", "a metallic ting", "a bright ting"),
    "star": ("a chime", "a clear chime", "a bright chime"),
    "ring": ("a bell", "the stroke of a bell", "a ringing bell"),
    "diamond": ("a clink", "a glassy clink", "a high clink"),
}
NOISES: dict[str, tuple[str, ...]] = {
    "rising": ("a rising tone", "a tone going up in pitch", "a tone that gets higher and higher"),
    "falling": ("a falling tone", "a tone going down in pitch", "a tone that gets lower and lower"),
    "warble": ("a wavering tone", "a tone that wavers up and down", "a siren-like tone"),
    "hum": ("a steady hum", "a low hum", "an even humming sound"),
    "swell": ("a tone that gets louder", "a swelling tone", "a sound building up"),
    "fade": ("a tone that gets quieter", "a fading tone", "a sound dying away"),
    "pulse": ("a throbbing sound", "a pulsating hum", "a low throb"),
}
HEARD = (
    ", with {}",
    ", to the sound of {}",
    ". We hear {}",
    " while {} is heard",
    ", {} is heard",
    ". Sound: {}",
)
UNHEARD = (" in silence", ", without a sound", ", silently", ". Nothing is heard", ", and there is no sound")

GROUNDS = (
    ("on", "floor"),
    ("on", "background"),
    ("against", "background"),
    ("in front of", "wall"),
    ("in", "room"),
    ("against", "backdrop"),
)

OPENINGS = ("a video of", "a short clip of", "we see", "footage of", "this is")

MENTIONED = {"shape": 0.96, "colour": 0.94, "size": 0.5, "background": 0.88, "motion": 0.94, "sound": 0.35}


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _choose_stated(rng: np.random.Generator, scene: Scene, still: bool) -> frozenset[str]:
    """Which attributes the caption tells: no motion of a still, no size of growing things, no sound alone."""
    stated = {name for name, chance in MENTIONED.items() if rng.random() < chance}
    if scene.motion in RESIZING:
        stated.discard("size")
    if still:
        stated.discard("motion")
    if "motion" not in stated or (scene.sound == "impacts" and "shape" not in stated):
        stated.discard("sound")
    return frozenset(stated)


def _sound_phrase(rng: np.random.Generator, scene: Scene) -> str:
    if scene.sound == "silence":
        return str(rng.choice(UNHEARD))
    if scene.sound == "impacts":
        noise = f"{rng.choice(RINGS[scene.shape])} {rng.choice(HITS)}"
    else:
        noise = str(rng.choice(NOISES[scene.sound]))
    return str(rng.choice(HEARD)).format(noise)


def _arrange(rng: np.random.Generator, thing: str, finite: str, gerund: str, place: str, ground: str) -> str:
    """Put the parts into one of several word orders; empty parts are left out."""
    subject = _article(thing)
    orders = [
        f"there is {subject} {gerund} {place}",
        f"{rng.choice(OPENINGS)} {subject} {gerund} {place}",
        f"{subject} {gerund} {place}",
        ", ".join(part for part in (thing, gerund, ground) if part),
    ]
    if finite:
        orders += [f"{subject} {finite} {place}"] * 3
    if finite and place:
        orders += [f"{place}, {subject} {finite}", f"{subject} {place} {finite}"]
    if place:
        orders += [f"{_article(ground)}, and {subject} {gerund}", f"{place} there is {subject} {gerund}"]
    return " ".join(str(rng.choice(orders)).split())


def _finish(rng: np.random.Generator, text: str) -> str:
    """Capitals and full stops, or now and then neither."""
    if rng.random() < 0.25:
        return text
    sentences = [part[0].upper() + part[1:] for part in text.split(". ")]
    return ". ".join(sentences) + ("" if rng.random() < 0.15 else ".")


def write_caption(rng: np.random.Generator, scene: Scene, still: bool = False) -> tuple[str, frozenset[str]]:
    """A caption of `scene`, and which of `MENTIONED`'s attributes it states."""
    stated = _choose_stated(rng, scene, still)

    def word(attribute: str, choices: Sequence[str]) -> str:
        chosen = str(rng.choice(choices))
        return chosen if attribute in stated else ""

    noun = word("shape", NOUNS[scene.shape]) or str(rng.choice(THINGS))
    adjectives = (word("size", SIZE_WORDS[scene.size]), word("colour", COLOUR_WORDS[scene.colour]))
    finite, gerund = VERBS[scene.motion][int(rng.integers(len(VERBS[scene.motion])))]
    if "motion" not in stated:
        finite = gerund = ""
    preposition, what = GROUNDS[int(rng.integers(len(GROUNDS)))]
    backdrop = word("background", BACKGROUND_WORDS[scene.background])
    ground = f"{backdrop} {what}" if backdrop else ""
    place = f"{preposition} {_article(ground)}" if backdrop else ""
    text = _arrange(rng, " ".join(filter(None, (*adjectives, noun))), finite, gerund, place, ground)
    if "sound" in stated:
        text += _sound_phrase(rng, scene)
    return _finish(rng, text), stated


def for_testing(caption: str) -> bool:
    """Whether a caption's wording is kept for tests: one in eight, by the CRC-32 of its small letters."""
    letters = re.sub(r"[^a-z]", "", caption.lower())
    return zlib.crc32(letters.encode()) % 8 == 0


def _first(text: str, words: Mapping[str, tuple[str, ...]]) -> tuple[str | None, str]:
    """The key whose word or phrase is the longest found in `text`, and the text without that phrase."""
    found = [
        (len(phrase), key, match)
        for key, phrases in words.items()
        for phrase in phrases
        if (match := re.search(rf"\b{re.escape(phrase)}\b", text))
    ]
    if not found:
        return None, text
    _, key, match = max(found, key=lambda item: item[0])
    return key, text[: match.start()] + " " + text[match.end() :]


def _sound_words() -> dict[str, tuple[str, ...]]:
    words = dict.fromkeys(SOUNDS, ()) | NOISES
    words["impacts"] = tuple(f"{ring} {hit}" for rings in RINGS.values() for ring in rings for hit in HITS)
    words["silence"] = tuple(phrase.strip(" .,").lower() for phrase in UNHEARD)
    return words


def read_caption(text: str) -> dict[str, str]:
    """The attributes that a caption in this world's words states: {"shape": "ball", "colour": "red", ...}.

    What it does not state, or says in other words, is left out.
    """
    text = re.sub(r"\s+", " ", text.lower())
    sound, text = _first(text, _sound_words())
    verbs = {motion: tuple(form for pair in pairs for form in pair) for motion, pairs in VERBS.items()}
    motion, text = _first(text, verbs)
    grounds = "|".join(dict.fromkeys(what for _, what in GROUNDS))
    backdrops = {
        name: tuple(f"{w} {g}" for w in words for g in grounds.split("|"))
        for name, words in BACKGROUND_WORDS.items()
    }
    background, text = _first(text, backdrops)
    shape, text = _first(text, NOUNS)
    colour, text = _first(text, COLOUR_WORDS)
    size, text = _first(text, SIZE_WORDS)
    found = {
        "shape": shape,
        "colour": colour,
        "size": size,
        "background": background,
        "motion": motion,
        "sound": sound,
    }
    return {name: value for name, value in found.items() if value is not None}
