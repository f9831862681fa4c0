"""Words and name shapes of the generated text.

`WORDS` are open lists: two thirds of each is for ordinary text, one third is held out.
`SHAPES` say how a name, a date or an amount is put together; they are shared by both parts.

Notation: `{symbol}` stands for a shape or a word list, `{2..9}` for a number in that range,
`(a|b)` for a free choice, `{root}` for a name built from syllables.
"""


def words(block: str) -> tuple[str, ...]:
    """The words of a block of text."""
    return tuple(block.split())


# A built name takes one of each. The first two are always two letters, so no name is built twice.
SYLLABLES = (
    words("Ba Be Co Da De Do Fa Fe Ga Ha He Jo Ka Ke La Lo Lu Ma Me Mo Na No Pa Po Ra"),
    words("la le li lo ra re ri ro na ne ni no va ve vi vo ma mi sa so ta te ti to"),
    words("bex can dor fin gan kora lis lux mar ndo nex pel rix shan tana vari zen zo"),
)

WORDS: dict[str, tuple[str, ...]] = {
    "first_name": words("""
        Aaron Ada Aisha Alan Alice Amir Anika Anton Bella Ben Bianca Boris Carla Chen Chloe Clara
        Daniel Daria Diego Dina Edward Elena Emil Erik Fatima Felix Fiona Frank Grace Greta Hannah
        Hugo Ibrahim Ines Ivan Jack Jasmine Julia Karim Kate Kenji Lars Laura Leo Lucy Marco Maria
        Mei Nadia Nikhil Nora Oscar Pedro Priya Rosa Ruben Samira Sofia Tom Yuki
    """),
    "surname": words("""
        Abbott Adler Ahmed Baker Banerjee Becker Bishop Brandt Castro Chandra Cooper Costa Craig
        Dalton Dubois Eriksen Farrell Fischer Fuentes Garner Gupta Hansen Hayashi Hughes Ivanov
        Jensen Kapoor Keller Khan Kovac Lindgren Lopez Mancini Marsh Mendes Miller Moreau Murphy
        Nakamura Novak Okafor Olsen Ortega Parker Petrov Quinn Ramos Reid Romano Santos Schmidt
        Silva Tanaka Thorne Turner Varga Weaver Wong Yilmaz Zimmer
    """),
    # Names of people that are names of places too.
    "crossover": words("""
        Adelaide Alexandria Austin Camden Carolina Charlotte Chelsea Dakota Dallas Devon Florence
        Geneva Georgia Houston India Jackson Jordan Kingston Lincoln Madison Milan Orlando Paris
        Phoenix Savannah Siena Sydney Valencia Victoria Vienna
    """),
    "city_name": words("""
        Athens Bergen Berlin Boston Brussels Cairo Chicago Copenhagen Denver Dublin Geelong Genoa
        Hamburg Hanoi Helsinki Istanbul Jakarta Krakow Lagos Leeds Lima Lisbon London Lyon Madrid
        Manila Montreal Mumbai Nairobi Naples Osaka Oslo Porto Prague Quito Rome Seattle Seoul
        Tokyo Toronto Utrecht Warsaw
    """),
    "adjective": words("""
        Amber Ancient Black Blue Broken Burning Copper Crimson Crooked Distant Double Electric
        Empty Final Frozen Gentle Golden Green Hidden Hollow Iron Little Lonely Lost Midnight
        Narrow Open Paper Purple Quiet Red Rolling Royal Rusty Silent Silver Sleeping Stone Velvet
        White Wild Wooden
    """),
    "noun": words("""
        Anchor Arrow Barrel Bridge Castle Circle Clover Comet Compass Corner Crown Dragon Ember
        Feather Fountain Fox Garden Harbor Harvest Horizon Island Junction Key Lantern Lily Meadow
        Mirror Monkey Moon Mountain Oak Olive Orchard Owl Pearl Pier River Rose Shadow Sparrow
        Spoon Station Swan Tiger Tower Valley Whale Willow
    """),
    "mascot": words("""
        Badgers Bears Bisons Bulls Cobras Cougars Eagles Falcons Giants Hawks Hornets Jaguars
        Knights Lions Panthers Pirates Ravens Rockets Sharks Stallions Storm Titans Wizards Wolves
    """),
    "flavour": words("""
        baked braised buttered charred chilled creamy crispy fiery fried garlic ginger grilled
        honey lemon minty peppered pickled roasted salted smoked spicy steamed sticky sweet
    """),
    "ingredient": words("""
        aubergine bean beef broccoli cabbage carrot cauliflower cheese chicken chickpea cod corn
        crab duck egg fennel lamb leek lentil mushroom noodle onion pea pork potato prawn pumpkin
        rice salmon spinach squash tofu tomato trout tuna turkey
    """),
    "form": words("""
        bake bowl broth burger curry dumpling flatbread gratin kebab lasagna pie pizza risotto roll
        salad sandwich skewer soup stew stir-fry taco tart toast wrap
    """),
}

SHAPES: dict[str, tuple[str, ...]] = {
    "person": (
        "{first_name}", "{first_name} {surname}", "{first_name} {root}", "{crossover} {surname}",
        "{crossover}", "(Mr|Ms|Dr) {surname}", "{surname}",
    ),
    "city": ("{city_name}", "{city_name}", "{crossover}", "{root}(ford|ton|ville)", "Port {root}"),
    "organization": (
        "{root}", "{root} (Labs|Systems|Group|Bank|Foods)", "{surname} & {surname}",
        "{surname} (Brothers|Partners)", "{crossover}", "{adjective} {noun}",
    ),
    "product": (
        "{root}", "{root} (Air|Pro|Mini|Max|{2..9})", "{noun} {2..9}", "{crossover} (Pro|One)",
    ),
    "dish": (
        "{flavour} {ingredient} {form}", "{ingredient} {form}",
        "{ingredient} and {ingredient} {form}",
    ),
    "restaurant": (
        "{root}", "{surname}'s", "the {adjective} {noun}", "{adjective} {noun}",
        "{root} (Kitchen|Grill|House)", "{crossover} (Kitchen|Grill|Corner)",
    ),
    "hotel": (
        "{root}", "Hotel {crossover}", "Hotel {root}", "the {adjective} {noun}", "{surname} House",
        "{noun} (Inn|Lodge|Suites)",
    ),
    "airline": (
        "{root}", "{root} (Air|Airways)", "{adjective} {noun} Air", "{noun} Airlines",
        "{crossover} Air",
    ),
    "event": (
        "{root} (Festival|Summit|Expo)", "{adjective} {noun} (Fair|Night|Run)",
        "{noun} (Week|Days)", "{crossover} Marathon", "{root}",
    ),
    "sports_team": (
        "{city_name}", "{crossover}", "{city_name} {mascot}", "{root} (United|Rovers)", "{mascot}",
    ),
    "street_address": (
        "{2..199} {surname} (Street|Road)", "{2..199} {noun} (Lane|Avenue)",
        "{2..199} {root} Street", "{crossover} Road {2..99}",
    ),
    "medication": ("{root}", "{root}(ol|ine|pril)", "{root} {10..90} mg"),
    "movie": (
        "{adjective} {noun}", "the {adjective} {noun}", "{crossover} in the (Rain|Dark)",
        "{noun} of {root}", "Goodbye {first_name}", "{root}",
    ),
    "song": (
        "{adjective} {noun}", "{adjective} {noun} (Blues|Song)", "Dear {crossover}",
        "{noun} and {noun}", "Dancing with {first_name}", "{root}",
    ),
    "time": (
        "{1..12} (am|pm)", "{1..12}:(15|30|45)", "{1..11}:(00|20|50) (am|pm)",
        "{13..22}:(05|10|40)", "{1..11}", "half past {1..11}", "quarter to {2..11}", "noon",
    ),
    "date": (
        "today", "tomorrow", "this {weekday}", "next {weekday}", "(this|next) weekend", "{day}",
    ),
    "day": (
        "{weekday}", "{month} {1..28}", "{1..28} {month}", "the {4..20}th",
        "{weekday} {1..28} {month}", "{1..12}/{13..28}",
    ),
    "past": ("yesterday", "last {weekday}", "last (week|month|weekend)", "{2..9} (days|weeks) ago"),
    "money": (
        "${5..400}", "{5..90}.50 euros", "{5..400} dollars", "€{5..400}", "{10..90} bucks",
        "{20..400}",
    ),
    "duration": ("{wait}", "{stay}"),
    "wait": (
        "{2..9} hours", "(10|20|25|40|45|50) minutes", "half an hour", "(two|three|four) hours",
    ),
    "stay": ("{2..9} (days|nights|weeks)", "a (week|month)", "(two|three|five) (days|nights)"),
    "quantity": ("{2..14}", "(two|three|four|five|six|seven|eight|ten)"),
    "phone_number": (
        "555-{1000..9999}", "0{100..999} {100..999} {100..999}", "+{30..59} {100000..999999}",
    ),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    ),
    # Never tagged: they look like entities and are none.
    "code": ("#{10000..99999}", "(KX|VR|ZL){100..999}", "{10000..99999}"),
    "score": ("{2..5} to {0..1}", "{70..99} to {50..69}", "{2..4}:{0..1}"),
    "percent": ("{2..60} percent", "{2..60}%"),
    "pet": ("{first_name}", "{crossover}", "{root}"),
    "book": ("{movie}", "{song}"),
    "landmark": ("{root}", "{adjective} {noun}", "{crossover}"),
    "room": ("kitchen", "bedroom", "hallway", "garage", "office", "bathroom"),
}  # fmt: skip

# Tagged symbols, and the entity type each one is tagged with.
ENTITY_OF: dict[str, str] = {
    name: name
    for name in words("""
        person city organization product dish restaurant hotel airline event sports_team
        street_address medication movie song time date money duration quantity phone_number
    """)
} | {"day": "date", "past": "date", "month": "date", "wait": "duration", "stay": "duration"}

SHORTHAND = {
    "please": "pls", "you": "u", "your": "ur", "thanks": "thx", "are": "r", "and": "&",
    "tomorrow": "tmrw", "because": "cos", "for": "4", "with": "w",
}  # fmt: skip
