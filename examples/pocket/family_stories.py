"""Simple generated stories and paragraphs of more than two hundred tokens; knows no facts about the world."""

from __future__ import annotations

import random

from . import words
from .sample import Sample, ask

OPENINGS = (
    "Once upon a time, there was a {job} named {n} who lived in a {adj} {place} near {city}.",
    "Long ago, in a {adj} {place} not far from {city}, lived a {job} called {n}.",
    "{n} was a {adj} {job} who lived at the edge of a {place} near {city}.",
    "In the {adj} {place} of {city} there lived a {job} by the name of {n}.",
)
WISHES = (
    "More than anything else, {n} wanted to learn about {t}.",
    "Every day {n} thought about {t}.",
    "{n} had always dreamed of {t}.",
    "There was one thing that {n} cared about, and that was {t}.",
)
FRIENDS = (
    "{n} had a good friend, a {adj2} {animal} called {f}.",
    "The only one who understood this was {f}, a {adj2} {animal}.",
    "Together with {f}, a {adj2} {animal}, {n} made a plan.",
)
STARTS = (
    "One {time}, a {adj3} {thing} appeared at the door.",
    "One {time}, {n} found a {adj3} {thing} on the road.",
    "Then, one {time}, somebody left a {adj3} {thing} in front of the house.",
)
TALKS = (
    '"What could this be?" asked {n}.',
    '"Do you think it has to do with {t}?" asked {n}.',
    '"I have never seen anything like it," said {n}.',
)
REPLIES = (
    '"I am sure that it can help us," said {f}.',
    '"Let us find out together," answered {f}.',
    '"We must be careful," said {f}, "but we should try."',
)
TRAVELS = (
    "So they packed some {food} and walked to the {place2}.",
    "They took a little {food} and set out for the {place2}.",
    "The next morning they left for the {place2} with a bag of {food}.",
)
TRIALS = (
    "The way was long, and soon the {weather} came.",
    "On the way they had to cross a wide river, and the {weather} did not make it easy.",
    "It was a hard journey because of the {weather}, but they did not stop.",
)
MEETINGS = (
    "At the {place2} they met an old {job2} who knew a lot about {t}.",
    "There they met a kind {job2}, who listened to the whole story.",
    "An old {job2} was waiting for them at the {place2}.",
)
LESSONS = (
    'The {job2} looked at the {thing} and said, "You already have what you need."',
    '"The secret is to be patient," said the {job2}.',
    '"Share what you find," said the {job2}, "and it will grow."',
)
TURNS = (
    "{n} thought about these words for a long time.",
    "At first {n} did not understand, but then {f} began to smile.",
    "That night, under the stars, {n} finally understood.",
)
DEEDS = (
    "When they came home, {n} gave the {thing} to the children of {city}.",
    "Back in {city}, {n} told everybody what they had learned about {t}.",
    "They returned to {city} and used the {thing} to help all their neighbours.",
)
ENDINGS = (
    "From that day on, nobody in {city} was ever {feeling} again.",
    "Since then, people in {city} tell each other the story of {n} and {f}.",
    "And whenever the {weather} came, {n} and {f} sat by the fire and remembered the journey.",
)
MORALS = ("And they lived happily ever after.", "The end.", "And that is the story of {n} and {t}.")
TELLING = (
    OPENINGS,
    WISHES,
    FRIENDS,
    STARTS,
    TALKS,
    REPLIES,
    TRAVELS,
    TRIALS,
    MEETINGS,
    LESSONS,
    TURNS,
    DEEDS,
    ENDINGS,
    MORALS,
)

DESCRIBING = (
    (
        "{T} is a subject that many people like to talk about.",
        "When people think of {t}, they often think of something {adj}.",
        "There is a lot to say about {t}.",
    ),
    (
        "For some it is {adj}, for others it is {adj2}, and for most it is a bit of both.",
        "It can be {adj} and {adj2} at the same time.",
        "At first it may seem {adj}, but a closer look shows that it is {adj2}.",
    ),
    (
        "In {city}, for example, a {job} once spent a whole {season} with {t}.",
        "A {job} from {city} once said that {t} had changed everything.",
        "I once heard of a {job} in {city} who thought about {t} every day.",
    ),
    (
        "Children like it because it makes them {feeling2}.",
        "Children often ask about it, and their questions are {adj3}.",
        "Children see it in a different way, and that is a good thing.",
    ),
    (
        "Older people remember how {adj3} it was in the past.",
        "Older people say that it was different when they were young.",
        "Those who are older like to tell stories about it.",
    ),
    (
        "The best time for it is the {season}, when the days are {adj}.",
        "In the {season} it looks different than at any other time of the year.",
        "Many wait the whole year for the {season} because of it.",
    ),
    (
        "You need little to begin: a {thing}, some time and an open mind.",
        "A {thing} and a little patience are enough to start.",
        "All it takes is a {thing} and a quiet {time}.",
    ),
    (
        "It helps to start small and to keep going.",
        "It is wise to begin with small steps.",
        "The first step is the hardest one.",
    ),
    (
        "If something goes wrong, take a break, drink some tea and try again.",
        "Mistakes are part of it, and nobody should be afraid of them.",
        "Not every attempt will work, and that is fine.",
    ),
    (
        "A good friend can make it even better.",
        "It is even better when you share it with a friend.",
        "Together with others it is twice as good.",
    ),
    (
        "After a while you will notice how much you have learned.",
        "With time, you will see it with new eyes.",
        "Step by step, it becomes a part of your life.",
    ),
    (
        "That is why {t} will always be worth a thought.",
        "In the end, {t} is what you make of it.",
        "So the next time you hear about {t}, stop for a moment and enjoy it.",
    ),
)
TIMES = ("rainy morning", "quiet evening", "sunny afternoon", "cold night", "windy day", "bright morning")
WEATHERS = ("rain", "snow", "wind", "fog", "storm", "cold")
FEELINGS = ("lonely", "sad", "afraid", "hungry", "bored")
FEELINGS_GOOD = ("happy", "curious", "brave", "proud", "calm")
SEASONS = ("spring", "summer", "autumn", "winter")


def _topic(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        return rng.choice((*words.NOUNS, *words.ANIMALS, *words.FOODS)) + ("s" if rng.random() < 0.3 else "")
    if kind < 0.5:
        return f"{rng.choice(('a', 'the'))} {rng.choice((*words.NOUNS, *words.ANIMALS))}"
    if kind < 0.75:
        return f"{rng.choice(('a', 'the'))} {rng.choice(words.ADJECTIVES)} {rng.choice((*words.NOUNS, *words.ANIMALS))}"
    if kind < 0.85:
        return words.invented(rng)
    return f"{rng.choice(words.NOUNS)} and {rng.choice(words.NOUNS)}"


def _filled(rng: random.Random, plan: tuple[tuple[str, ...], ...], topic: str) -> str:
    adjectives = rng.sample(words.ADJECTIVES, 3)
    blanks = {
        "n": rng.choice(words.FIRST_NAMES[:60]),
        "f": rng.choice(words.FIRST_NAMES[60:]),
        "t": topic,
        "T": topic[0].upper() + topic[1:],
        "job": rng.choice(words.JOBS[:8]),
        "job2": rng.choice(words.JOBS[8:]),
        "place": rng.choice(words.PLACES[:6]),
        "place2": rng.choice(words.PLACES[6:]),
        "city": rng.choice(words.CITIES),
        "adj": adjectives[0],
        "adj2": adjectives[1],
        "adj3": adjectives[2],
        "animal": rng.choice(words.ANIMALS),
        "thing": rng.choice(words.NOUNS),
        "time": rng.choice(TIMES),
        "food": rng.choice(words.FOODS),
        "weather": rng.choice(WEATHERS),
        "feeling": rng.choice(FEELINGS),
        "feeling2": rng.choice(FEELINGS_GOOD),
        "season": rng.choice(SEASONS),
    }
    return " ".join(rng.choice(choices) for choices in plan).format(**blanks)


def story(rng: random.Random) -> Sample:
    """A story or a paragraph about a topic; judged by its form, as no two need be the same."""
    topic = _topic(rng)
    if rng.random() < 0.6:
        way = rng.choice(
            (
                "Tell me a story about {t}",
                "Write a story about {t}",
                "Write a short story about {t}",
                "Please tell me a story about {t}",
                "I want to hear a story about {t}",
                "Can you tell me a story about {t}",
                "Tell a tale of {t}",
                "Write a fairy tale about {t}",
                "Write me a long story about {t}",
                "Once upon a time, there was {t}. Go on",
            )
        )
        answer = _filled(rng, TELLING, topic)
    else:
        way = rng.choice(
            (
                "Write a paragraph about {t}",
                "Write a few sentences about {t}",
                "Tell me about {t}",
                "Write something about {t}",
                "Write an essay about {t}",
                "Explain {t}",
                "Talk about {t}",
                "Describe {t}",
                "Write a long text about {t}",
                "Write a poem about {t}",
                "Tell me something about {t}",
                "What do you think about {t}",
            )
        )
        answer = _filled(rng, DESCRIBING, topic)
    question = way.format(t=topic) + rng.choice(
        (".", ".", "", "!", ", please.", "?" if way.startswith(("Can", "What")) else ".")
    )
    return ask("story", question, answer, key=topic, check="story", topic=topic)
