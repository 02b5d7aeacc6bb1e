"""What is said in the measurements of speech that is heard."""

EVERYDAY = (
    "It is a beautiful day.",
    "Where are you going?",
    "I am very happy to see you.",
    "We will have dinner at home tonight.",
    "She opened the window and looked at the garden.",
    "Please tell me what you would like to do.",
    "The children were playing in the street.",
    "He put his hand on the table.",
    "I do not know what to say.",
    "They came back to the house in the evening.",
    "You can leave your coat on the chair.",
    "My brother wrote me a long letter.",
    "There was nobody in the room.",
    "Thank you for everything.",
    "The door was open, and nobody answered when we called.",
    "If you have time, come and visit us in the summer.",
    "We walked along the river, and then we went home.",
    "What time does the next train leave?",
    "I would like a cup of tea, please.",
    "The weather is cold today, but the sun is out.",
    "He asked me a question that I could not answer.",
    "Can you help me carry these books to the car?",
    "She has lived in this town for many years.",
    "When the rain stopped, the children ran outside.",
    "I have never seen such a small dog before.",
    "Turn left at the corner, then go straight on.",
    "My mother makes the best bread in the village.",
    "It was late, so we decided to stay for the night.",
    "You should call your sister before dinner.",
    "The old man sat by the fire and told us a story.",
    "We need more milk, some eggs, and a little butter.",
    "Do you remember the name of that song?",
    "He opened the box and found an old watch.",
    "The meeting starts at nine, and it will last an hour.",
    "I think that she is right about the money.",
    "Nobody knows where the key is.",
    "They were tired, but they were very happy.",
    "The water in the lake was clear and cold.",
    "Yes, I will be there in five minutes.",
    "Good morning, and welcome to our house.",
)


def plain(word: str) -> str:
    """What two spellings of one word have in common."""
    return "".join(character for character in word.casefold() if character.isalnum())
