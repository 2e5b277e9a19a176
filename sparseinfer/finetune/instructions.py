"""What a model is asked when it writes its own training text: tasks and subjects, drawn at random.

Tasks times subjects times manners are some hundred thousand instructions, in English. They only
have to be varied: what is trained on is how the model answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TASKS = (
    "Explain {one}.",
    "Explain {one} to a ten-year-old.",
    "What is {one}, and why does it matter?",
    "Write a short story in which {one} plays a part.",
    "Write a poem about {one}.",
    "Give me five facts about {one}.",
    "List the advantages and the disadvantages of {one}.",
    "Compare {one} with {two}.",
    "What do {one} and {two} have in common?",
    "Write an email to a colleague about {one}.",
    "Write a letter to a friend who wants to know more about {one}.",
    "Describe how {one} has changed over the last hundred years.",
    "Tell me about the history of {one}.",
    "What mistakes do beginners make with {one}?",
    "Write a dialogue between two people who disagree about {one}.",
    "Write the first page of a novel that begins with {one}.",
    "Give step by step instructions for someone who has to deal with {one}.",
    "Write a news report about {one}.",
    "Write a speech about {one} for a small audience.",
    "Summarize what is known about {one}.",
    "What questions would you ask an expert on {one}?",
    "Make a plan for learning about {one} in four weeks.",
    "Write an essay about {one} and {two}.",
    "How would you teach {one} to a class?",
    "What are common myths about {one}?",
    "Write a product description that mentions {one}.",
    "Write a review of a book about {one}.",
    "Write an encyclopedia article about {one}.",
    "Give an argument for and an argument against {one}.",
    "Think of three unusual uses of {one}, and explain each.",
    "Write a quiz with answers about {one}.",
    "Describe a day in the life of someone who works with {one}.",
    "What could go wrong with {one}, and how can one prepare for it?",
    "Write a diary entry about {one}.",
    "Define {one} in one sentence, then give an example.",
    "What would the world be like without {one}?",
    "Write a word problem about {one} and solve it.",
    "Write a Python function that has something to do with {one}.",
    "Write a small program that keeps a list of things about {one}, and explain the code.",
    "Design a database table for {one}.",
    "Make a table with three columns about {one}.",
    "Write a recipe or a procedure that involves {one}.",
    "Invent a proverb about {one} and say what it means.",
    "Write a travel guide for people who are interested in {one}.",
    "Write a scene of a play about {one} and {two}.",
    "I know nothing about {one}. Where should I begin?",
    "My friend says that {one} is overrated. What do you think?",
    "Can you help me to understand how {one} works?",
    "Which is more important, {one} or {two}?",
    "How much does {one} cost, and what does that depend on?",
    "Who first studied {one}?",
    "What are the main kinds of {one}?",
    "Write a tweet, a headline and a slogan about {one}.",
    "Rewrite this sentence in three ways: we need to talk about {one}.",
    "Finish this text: nobody in the village had ever heard of {one}, until",
    "What is the relation between {one} and {two}?",
    "Give me an example of {one} from everyday life.",
    "Name ten words that go with {one}, and use each in a sentence.",
    "Write the minutes of a meeting about {one}.",
    "What is the opposite of {one}?",
)

_SUBJECTS = (
    "photosynthesis", "gravity", "black holes", "the periodic table", "vaccines", "antibiotics",
    "plate tectonics", "volcanoes", "the water cycle", "climate change", "evolution", "genetics",
    "stem cells", "the human heart", "sleep", "dreams", "memory", "the immune system", "nutrition",
    "vitamins", "exercise", "running a marathon", "yoga", "first aid", "stress", "friendship",
    "loneliness", "happiness", "honesty", "courage", "patience", "jealousy", "forgiveness",
    "prime numbers", "fractions", "probability", "statistics", "triangles", "infinity", "algebra",
    "the Pythagorean theorem", "percentages", "averages", "logic puzzles", "chess", "card games",
    "computers", "the internet", "programming", "sorting algorithms", "recursion", "databases",
    "operating systems", "encryption", "passwords", "artificial intelligence", "robots",
    "self-driving cars", "electric cars", "bicycles", "trains", "airplanes", "ships", "bridges",
    "skyscrapers", "solar power", "wind turbines", "nuclear energy", "batteries", "magnets",
    "sound", "light", "lasers", "telescopes", "the Moon", "Mars", "the Sun", "comets", "satellites",
    "rivers", "deserts", "rainforests", "coral reefs", "glaciers", "islands", "mountains", "caves",
    "weather forecasts", "thunderstorms", "earthquakes", "floods", "drought", "soil", "trees",
    "mushrooms", "bees", "ants", "butterflies", "whales", "sharks", "penguins", "owls", "wolves",
    "cats", "dogs", "horses", "dinosaurs", "gardening", "farming", "rice", "bread", "cheese",
    "coffee", "tea", "chocolate", "soup", "spices", "cooking for a large family", "restaurants",
    "markets", "money", "inflation", "taxes", "banks", "insurance", "saving for retirement",
    "small businesses", "job interviews", "remote work", "teamwork", "leadership", "meetings",
    "deadlines", "negotiation", "advertising", "customer service", "trade unions", "factories",
    "ancient Egypt", "the Roman Empire", "the Middle Ages", "the Silk Road", "the Renaissance",
    "the Industrial Revolution", "the French Revolution", "the First World War", "the Cold War",
    "democracy", "constitutions", "elections", "courts", "human rights", "the United Nations",
    "immigration", "cities", "villages", "public transport", "libraries", "schools", "homework",
    "universities", "learning a foreign language", "translation", "grammar", "spelling",
    "handwriting", "newspapers", "television", "photography", "film", "theater", "painting",
    "sculpture", "architecture", "poetry", "fairy tales", "science fiction", "detective stories",
    "music", "the piano", "jazz", "choirs", "dance", "football", "tennis", "swimming",
    "the Olympics", "mountain climbing", "camping", "fishing", "sailing", "travel", "hotels",
    "maps", "borders", "holidays", "weddings", "birthdays", "childhood", "old age", "grandparents",
    "neighbors", "moving house", "furniture", "clothes", "shoes", "umbrellas", "clocks", "keys",
    "mirrors", "letters", "telephones", "silence", "a lost dog", "a broken window",
    "an old lighthouse", "a secret door", "a train that never arrives", "a talking parrot",
    "a stolen painting", "a long winter", "the last day of school", "a mysterious letter",
    "a kind stranger", "a flat tire", "a power cut", "a job on an oil rig", "a hospital at night",
    "a small bakery", "plastic waste", "recycling", "clean water", "air pollution",
    "endangered species", "fair trade", "philosophy", "ethics", "free will", "religion",
    "mythology", "superstition", "luck", "time", "paper", "glass", "steel", "concrete", "oil",
    "gold", "salt", "sugar", "silk", "cotton",
)  # fmt: skip

_MANNERS = (
    "", "", "", "", "", "",
    "Keep it short.", "Use simple words.", "Be as detailed as you can.", "Answer in one paragraph.",
    "Give reasons.", "Use a friendly tone.", "Use a formal tone.", "Include an example.",
    "Write at least five paragraphs.", "Use bullet points.", "End with a question.",
    "Begin with a surprising sentence.", "Be funny.", "Do not use more than a hundred words.",
    "Think step by step.", "Write for an expert.", "Use numbers where you can.",
)  # fmt: skip


def draw_instruction(random: np.random.Generator) -> str:
    """One instruction; each is as likely as any other of its kind."""
    one, two = (_SUBJECTS[number] for number in random.choice(len(_SUBJECTS), 2, replace=False))
    task = _pick(_TASKS, random).format(one=one, two=two)
    return f"{task} {_pick(_MANNERS, random)}".rstrip()


def _pick(among: Sequence[str], random: np.random.Generator) -> str:
    return among[int(random.integers(len(among)))]
