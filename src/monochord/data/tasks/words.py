"""Common words that textual tasks draw from: things, names, places, colours, pairs of words."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    """apple arm bag ball bank bed bell bird boat body book box boy bread brother bridge bus cake camp cap car card cat
    chair church city cloud coat corn cow cup day desk doctor dog door dress ear earth egg eye face farm father
    field fire fish floor flower foot garden gate girl glass gold grass hair hall hand hat head heart hill home
    horse house ice island key king kitchen lady lake lamp land leaf letter life light lion man map meat milk money
    moon mother mountain mouth music name night nose ocean paper park pen picture plant queen rain ring river road
    rock room rose salt sand school sea seed ship shirt shoe shop sister sky snow song spoon star stone street sugar
    sun table tail tea tent tooth town train tree valley village voice wall water wind window wine winter woman wood
    world year"""
)
NAMES = _words(
    """Adam Alice Andrew Anna Anne Ben Charles Daniel David Edward Elizabeth Emma Frank George Grace Harry Henry Isaac
    Jack Jacob James Jane John Joseph Julia Laura Lucy Mark Martin Mary Matthew Michael Paul Peter Rachel Richard
    Robert Rose Ruth Samuel Sarah Simon Susan Thomas Tom William"""
)
PLACES = _words("bank church garden hospital house office park restaurant school shop station town")
OBJECTS = _words("apple ball basket bell book bottle card coin cup drink flower gift hat key letter ring")
COLOURS = _words("black blue brown gold green grey orange pink purple red silver white yellow")
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("good", "bad"), ("up", "down"), ("day", "night"), ("black", "white"),
    ("old", "new"), ("rich", "poor"), ("early", "late"), ("left", "right"), ("strong", "weak"), ("long", "short"),
    ("high", "low"), ("first", "last"), ("love", "hate"), ("true", "false"), ("open", "closed"), ("full", "empty"),
    ("life", "death"), ("man", "woman"), ("boy", "girl"), ("king", "queen"), ("father", "mother"), ("son", "daughter"),
    ("brother", "sister"), ("heaven", "earth"), ("begin", "end"), ("young", "old"), ("happy", "sad"), ("light", "dark"),
)  # fmt: skip
SPANISH = (
    ("house", "casa"), ("water", "agua"), ("man", "hombre"), ("woman", "mujer"), ("day", "día"), ("night", "noche"),
    ("king", "rey"), ("son", "hijo"), ("father", "padre"), ("mother", "madre"), ("land", "tierra"), ("hand", "mano"),
    ("city", "ciudad"), ("heart", "corazón"), ("name", "nombre"), ("people", "pueblo"), ("bread", "pan"),
    ("fire", "fuego"), ("sea", "mar"), ("word", "palabra"), ("eyes", "ojos"), ("year", "año"), ("road", "camino"),
    ("brother", "hermano"), ("daughter", "hija"), ("blood", "sangre"), ("gold", "oro"), ("silver", "plata"),
    ("mountain", "monte"), ("tree", "árbol"), ("life", "vida"), ("death", "muerte"), ("God", "Dios"), ("love", "amor"),
)  # fmt: skip
