"""Words that the caption rules need: data only."""

from __future__ import annotations

__all__ = [
    "IRREGULAR_PLURALS",
    "MASS_NOUNS",
    "MEASURE_WORDS",
    "NOT_PLURAL",
    "NO_ARTICLE",
    "PLURAL_NAMES",
    "STYLE_PHRASES",
    "SYNONYMS",
    "THE_NAMES",
]


def _listed(text: str) -> frozenset[str]:
    """The entries of a list separated by commas."""
    return frozenset(" ".join(text.split()).strip(" ,").split(", "))


STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "noto": ("noto style",),
    "noto-classic": ("classic noto style", "old noto style"),
    "twemoji": ("twemoji style",),
    "emojione": ("emojione style",),
    "firefox": ("firefox style",),
    "fluent-flat": ("flat fluent style", "flat design"),
    "fluent-3d": ("3d style", "3d render", "glossy 3d"),
}

IRREGULAR_PLURALS: dict[str, str] = {
    "bison": "bison",
    "blowfish": "blowfish",
    "child": "children",
    "deer": "deer",
    "die": "dice",
    "dwarf": "dwarves",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "jellyfish": "jellyfish",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "moose": "moose",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "sheep": "sheep",
    "shelf": "shelves",
    "shrimp": "shrimps",
    "squid": "squids",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}
"""Singular word -> plural word; endings of compounds (merman, pickaxe) are found by rule."""

MASS_NOUNS = _listed(
    """
    bacon, badminton, beer, bread, broccoli, butter, camping, cheese, coffee, confetti, construction,
    cooking, coral, custard, cutlery, fire, flame, fog, foggy, food, grass, home, lightning, love,
    luggage, meat, milk, money, music, night, noodles, paper, pasta, poop, popcorn, rain, sake, salt,
    sand, smoke, snow, soap, spaghetti, sushi, tea, tennis, thread, water, wax, wine, wood, yarn
    """
)
"""Single words that take neither "a" nor a plural."""

NO_ARTICLE = _listed(
    """
    Aquarius, Aries, Cancer, Capricorn, Gemini, Leo, Libra, Mrs. Claus, Mx Claus, Ophiuchus, Pisces,
    Sagittarius, Santa Claus, Scorpio, Taurus, Tokyo tower, Virgo, ZZZ, bacon, badminton, baguette
    bread, bowling, bread, breast-feeding, broccoli, building construction, butter, camping, canned
    food, construction, cooked rice, cooking, coral, cricket game, curry rice, custard, dashing away,
    dizzy, dna, field hockey, fire, flower playing cards, fog, foggy, fondue, garlic, head shaking
    horizontally, head shaking vertically, high voltage, horse racing, hundred points, ice, ice hockey,
    infinity, lacrosse, lightning, locked, locked with key, locked with pen, luggage, mate, money with
    wings, mount fuji, nail polish, oden, performing arts, ping pong, popcorn, pouring liquid, rolling
    on the floor laughing, sake, salt, shaved ice, soap, spaghetti, speaker high volume, speaker low
    volume, speaker medium volume, star-struck, sushi, tennis, thread, thumbs down, thumbs up, unlocked,
    woman's clothes, wood, yarn
    """
)
"""Whole names that stand without an article."""

THE_NAMES = frozenset(
    (
        "sun",
        "sun with face",
        "sun behind cloud",
        "sun behind large cloud",
        "sun behind rain cloud",
        "sun behind small cloud",
        "Statue of Liberty",
        "milky way",
        "kaaba",
        "earth",
        "sea",
        "ocean",
    )
)
"""Whole names that take "the"."""

PLURAL_NAMES = _listed(
    """
    beans, blueberries, books, briefs, bubbles, chains, cherries, children, chopsticks, dice, eyes,
    feet, fireworks, footprints, fries, geese, glasses, gloves, goggles, grapes, hands, houses, jeans,
    knives, leaves, lungs, maracas, men, mice, pancakes, pants, peanuts, people, scissors, shorts, skis,
    socks, sunglasses, swords, teeth, tickets, tools, trousers, women
    """
)
"""Head words that are plural already."""

NOT_PLURAL = _listed(
    """
    abacus, actress, address, aries, asparagus, bonus, boss, bus, cactus, campus, canvas, census, chess,
    christmas, circus, class, compass, cross, cyclamen, cyclops, dress, eyeglass, fortress, fungus, gas,
    genius, glass, goddess, grass, headdress, hibiscus, hippopotamus, hummus, iris, kiss, lens, lotus,
    mattress, mess, minibus, moss, mucus, news, octopus, platypus, princess, process, rhinoceros, sis,
    stethoscopes, syringes, taurus, tennis, trolleybus, tyrannosaurus, virus, waitress, walrus,
    watercress
    """
)
"""Words that end in s and are singular."""

MEASURE_WORDS: dict[str, str] = {
    "Animals & Nature": "只",
    "Food & Drink": "个",
    "Objects": "个",
    "Travel & Places": "个",
    "Activities": "个",
    "People & Body": "个",
    "Smileys & Emotion": "个",
}
"""Chinese measure word by Unicode group."""

_SYNONYMS_TEXT = """
automobile = car
oncoming automobile = car from the front
sport utility vehicle = jeep, suv
articulated lorry = truck, lorry
delivery truck = truck, van
airplane = plane, aeroplane
small airplane = small plane
bicycle = bike
motorcycle = motorbike
motor scooter = scooter, moped
sailboat = boat, sailing boat
passenger ship = cruise ship
locomotive = steam train, steam locomotive
high-speed train = fast train
fire engine = fire truck
deciduous tree = tree
evergreen tree = pine tree, fir tree
leafless tree = bare tree
Christmas tree = decorated tree
palm tree = palm
potted plant = plant, plant in a pot
seedling = sprout
four leaf clover = clover
maple leaf = red leaf
fallen leaf = autumn leaf, brown leaf
blossom = flower, yellow flower
cherry blossom = pink flower, flower
hibiscus = red flower
bouquet = flowers, bunch of flowers
rose = red rose
honeybee = bee
lady beetle = ladybug, ladybird
bug = caterpillar
spouting whale = whale spouting water
ewe = sheep
ram = sheep with horns
baby chick = chick
hatching chick = chick in an egg
rooster = cock
two-hump camel = camel with two humps
T-Rex = dinosaur, tyrannosaurus
sauropod = dinosaur
cat face = head of a cat
dog face = head of a dog, puppy
horse face = head of a horse
monkey face = head of a monkey
cow face = head of a cow
pig face = head of a pig
rabbit face = head of a rabbit, bunny
tiger face = head of a tiger
mouse face = head of a mouse
dragon face = head of a dragon
panda = panda bear
bear = head of a bear
blowfish = puffer fish
tropical fish = colourful fish
red apple = apple
hot pepper = chili pepper
ear of corn = corn
eggplant = aubergine
roasted sweet potato = sweet potato
hamburger = burger
french fries = fries, chips
poultry leg = chicken leg, drumstick
cut of meat = steak
meat on bone = meat
cooked rice = bowl of rice
steaming bowl = bowl of noodles, noodle soup
spaghetti = plate of spaghetti, pasta
cheese wedge = cheese, piece of cheese
bread = loaf of bread
baguette bread = baguette
doughnut = donut
shortcake = piece of cake, slice of cake
birthday cake = cake, cake with candles
soft ice cream = ice cream cone
shaved ice = bowl of shaved ice
ice cream = bowl of ice cream
tangerine = orange, mandarin
watermelon = slice of watermelon
hot beverage = cup of coffee, coffee
teacup without handle = cup of tea, tea
wine glass = glass of wine
beer mug = beer, glass of beer
cocktail glass = cocktail
tropical drink = cocktail with a straw
glass of milk = milk
bottle with popping cork = bottle of champagne
fork and knife = cutlery
cooking = frying pan with an egg, fried egg
kitchen knife = knife
red heart = heart
broken heart = broken red heart
heart with arrow = heart pierced by an arrow
mobile phone = phone, smartphone
telephone = old telephone, phone
laptop = computer, laptop computer
desktop computer = computer screen, monitor
television = tv
movie camera = film camera
video camera = camcorder
light bulb = lamp, bulb
flashlight = torch
magnifying glass tilted left = magnifying glass
magnifying glass tilted right = magnifying glass
closed book = red book, book
open book = book
locked = lock, padlock
unlocked = open lock
gem stone = diamond, gem, jewel
ring = diamond ring
wrapped gift = gift, present
package = box, parcel
money bag = bag of money
dollar banknote = money, dollar bill
electric plug = plug
t-shirt = shirt
woman's clothes = blouse
running shoe = sneaker, shoe
man's shoe = shoe, leather shoe
high-heeled shoe = red shoe, high heels
woman's hat = hat
top hat = black hat, hat
billed cap = cap
headphone = headphones
musical keyboard = piano
musical note = note, music
wastebasket = trash can
straight ruler = ruler
pencil = yellow pencil
dagger = sword
hammer = tool
telescope = spyglass
sun with face = smiling sun
sun = shining sun, yellow sun
full moon = moon
crescent moon = moon, crescent
star = yellow star
glowing star = shining star
shooting star = falling star
night with stars = night, night sky, night scene
cityscape = city, skyline
cityscape at dusk = city at dusk
bridge at night = bridge, city at night
sunset = sunset over the city
sunrise = sunrise over the sea
sunrise over mountains = sunrise
milky way = starry sky, galaxy
fireworks = fireworks in the night sky
national park = landscape, river and mountains
snow-capped mountain = snowy mountain, mountain with snow
mount fuji = mountain
volcano = erupting volcano
beach with umbrella = beach
desert island = island, island with a palm tree
water wave = wave, sea, ocean
droplet = drop of water, water drop
sweat droplets = drops of water
cloud with rain = rain, rain cloud
cloud with snow = snow, snow cloud
cloud with lightning = thunderstorm, storm
cloud with lightning and rain = thunderstorm
sun behind cloud = sun and a cloud
high voltage = lightning bolt, lightning
fire = flame
house with garden = house and garden, house with a tree
house = small house, home
houses = village
office building = tall building
castle = fortress
classical building = temple, greek temple
camping = tent in the forest
tent = camping tent
ferris wheel = giant wheel
circus tent = circus
globe showing Europe-Africa = earth, globe, planet earth
globe showing Americas = earth, globe, planet earth
globe showing Asia-Australia = earth, globe, planet earth
ringed planet = saturn, planet
flying saucer = ufo
rocket = spaceship
soccer ball = football, ball
american football = rugby ball
basketball = orange ball
tennis = tennis ball
framed picture = painting
artist palette = paint palette, palette
jack-o-lantern = pumpkin, halloween pumpkin
game die = dice
video game = game controller, gamepad
teddy bear = toy bear
crown = golden crown
trophy = cup, golden trophy
1st place medal = gold medal
2nd place medal = silver medal
3rd place medal = bronze medal
party popper = confetti
bullseye = target, dartboard
alien monster = space invader
pile of poo = poop
skull = human skull
grinning face = happy face, smiling face
smiling face = smile, happy face
slightly smiling face = smiley, happy face
crying face = sad face
loudly crying face = crying face with streams of tears
angry face = mad face
enraged face = red angry face
face with tears of joy = laughing face
smiling face with heart-eyes = face in love
smiling face with sunglasses = cool face, face with sunglasses
sleeping face = face asleep
snowman without snow = snowman
snowman = snowman in the snow
Santa Claus = father christmas
cook = chef
police officer = policeman
firefighter = fireman
mage = wizard, witch
woman mage = witch
man mage = wizard
artist = painter
guard = british guard
footprints = footsteps
flexed biceps = strong arm, muscle
thumbs up = like
ox = bull
wood = log, logs
rock = stone
couch and lamp = sofa
mirror = looking glass
bathtub = bath
toilet = wc
hourglass done = hourglass
alarm clock = clock
mantelpiece clock = clock
watch = wristwatch
umbrella = purple umbrella
umbrella with rain drops = umbrella in the rain
"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    name: tuple(other.strip() for other in others.split(","))
    for name, others in (line.split(" = ", 1) for line in _SYNONYMS_TEXT.strip().splitlines())
}
"""CLDR name -> what a person would rather say (bare, without article)."""
