"""Phrases of the generated text: messages, requests, statements and related pairs.

Every third line of a block is held out. The notation is that of `vocabulary`; within one text the
same slot has the same value, and `{city:2}` is another city than `{city}`. Whatever names or
states an entity must be a slot, so that it is always tagged: no weekday, digit or name is written
out here.
"""


def lines(block: str) -> tuple[str, ...]:
    """The non-empty lines of a block of text."""
    return tuple(line.strip() for line in block.splitlines() if line.strip())


# Stand-alone messages. Neighbours often differ in one late word only, which decides the type.
MESSAGES = lines("""
    dinner at {restaurant} on {day} at {time}? {person} is (paying|coming too)
    (lunch|drinks) with {person} and {person:2} {date} at {time}, we could try {restaurant}
    are you free {date}? {person} got us a table for {quantity} at {restaurant}
    I (loved|hated) {restaurant}, the (waiters|menu) made us stay for {wait}
    I (loved|hated) {movie}, the (ending|actors) made us stay for {wait} talking
    I (loved|hated) {hotel}, the (pillows|view) made us stay for {stay}
    {song} is (great|awful), I could not get the (chorus|tune) out of my head for {duration}
    {medication} is (great|awful), it took the (pain|fever) away for {duration}
    {event} is (great|awful), the (stands|crowd) kept us busy for {duration}
    have you tried {dish}? {person} makes it better than {restaurant}
    have you tried {product}? {person} says the (battery|screen) lasts {duration}
    have you tried {medication}? {person} says the (cough|rash) was gone after {stay}
    {person} from {organization} (called|rang), the number is {phone_number}
    {organization} wants {person} (to start|in the office) on {day} at {time}
    call {person} at {organization} on {phone_number} before {time}
    {person} of {city} (left|joined) {organization} {past} for {money} more
    {organization} of {city} (bought|sold) {organization:2} {past} for {money}
    {sports_team} of the north (bought|sold) {person} {past} for {money}, fans are (angry|happy)
    {sports_team} (beat|stunned) {sports_team:2} {score} in {city} {past}
    {sports_team} drew in {city}, {person} scored after {wait}
    {person} (scored|missed) as {sports_team} lost {score} to {sports_team:2}
    {airline} lost my (bag|suitcase) between {city} and {city:2} {past}
    {airline} from {city} to {city:2} is {wait} late, (gate|flight) {code}
    fly {airline} to {city} {date} at {time}, (seat|flight) {code}, {money} each
    we are staying {stay} at {hotel} in {city}, room {code}
    {hotel} charged us {money} for {stay}, can you ask {person} (why|about it)?
    {quantity} rooms at {hotel} for {stay} from {day}, that is {money}
    the parcel goes to {street_address} in {city}, ask for {person}
    {person} moved from {city} to {street_address} {past}
    pick me up at {street_address} at {time}, {person} has the (keys|tickets)
    {product} from {organization} costs {money} and weighs nothing, I ordered {quantity}
    {organization} will replace my {product} within {stay}, code {code}
    I paid {money} for {product} {past} and it (broke|died) after {stay}
    {quantity} {dish} and a salad to {street_address}, I have {money} in cash
    the {dish} at {restaurant} was {money}, {percent} more than {past}
    can you bring {dish} {date}? {quantity} of us are (hungry|coming)
    {movie} starts at {time}, {quantity} cinema seats at {money} each
    {event} starts {date} all over {city}, {quantity} tickets at {money} each
    {person} starts at {organization} {date}, {quantity} of us will say hello
    {person} was (great|awful) in {movie}, {song} plays at the end
    {person} sang {song} at {event}, I (cried|laughed)
    play {song} before we watch {movie}, {person} (likes|wants) it
    take {medication} (after food|with water) at {time} and again at {time:2}
    {person} needs {medication} for {stay}, the (chemist|pharmacy) charges {money}
    the clinic in {city} called about {medication}, ring {phone_number} by {time}
    my (dog|cat) {pet} ate {person}'s {dish} {past}
    our (dog|cat) {pet} is lost near {street_address}, call {phone_number}
    the vet saw (my dog|our cat) {pet} {past} and asked for {money}
    the book {book} is better than the film {movie}, {person} read it in {stay}
    {person} is reading the novel {book} on the (train|way) to {city}
    I lent {person} the book {book} and the charger of my {product} {past}
    {organization} shares (fell|rose) {percent} after {person} left {past}
    {city} (expects|fears) rain for {duration}, {event} moves to {day}
    {organization} cut the price of the drug {medication} by {percent} {past}
    we walked along the river {landmark} to our room at {hotel}, it took {wait}
    cross the bridge {landmark} to eat at {restaurant}, {wait} from {city}
    the ship {landmark} reached {city} {past}, {wait} late
    meet {person} at {event} {date}, the (stand|hall) of {organization} is near the door
    see you at {event}, {person} booked {hotel} for {stay}
    the crowd at {event} was (huge|loud), {person} left for {city} at {time}
    table for {quantity} at {time} and not {time:2}, {person} will be late
    at {time} it was {money}, at {time:2} it was {money:2}, {quantity} left
    make it {quantity} at {time}, {person} brings {quantity:2} more
    {person} owes me {money} for lunch at {restaurant} and {money:2} for the ticket to {event}
    I sent {money} to {person} {past}, it takes {stay}
    the firm {organization} took {money} from my account {past}, who is {person}?
    is {hotel} (near|far from) {street_address}? {person} sleeps there from {time}
    is {restaurant} (open|busy) on {day}? {person} would like {dish}
    is {airline} (cheaper|safer) than {airline:2}? {person} paid {money} to {city}
    remind {person} to (bring|return) the {product} and its charger on {day} at {time}
    remind me that my {medication} pills run out {date}, (text|ring) {phone_number}
    remind {person} that {event} needs {quantity} (chairs|helpers) by {time}
    {person} (met|thanked) {person:2} in {city} before {event}
    {person} watched {sports_team} with {person:2} at {restaurant}
    in {city} {person} saw {movie} with {quantity} friends {past}
    nobody at {hotel} knew {person}, so we slept at {hotel:2} for {money}
    nobody at {organization} knew {person}, so we asked {organization:2} about {code}
    nobody at {restaurant} knew {person}, so we ate {dish} at {restaurant:2}
    {person} says {city} is (cold|warm) in {month}, {stay} is enough
    {person} sings {song}, which is older than the film {movie}, {organization} (owns|sells) both
    {person} says {airline} is (full|fine), try {time} on {day}
    got {dish} at {restaurant} and a {product} with charger at {organization}, {money} in all
    got {quantity} tickets for the {sports_team} game and {quantity:2} for {event}
    got a (flat|room) at {street_address} for {money}, {person} helped
    thanks {person}, {date} at {time} is fine, see you at {street_address}
    sorry {person}, {date} is hard, my {product} gets (installed|repaired) then
    happy birthday {person}! food at {restaurant} {date}? watch {movie} after that?
    (read|saw) that {organization} opens in {city} {date} with {quantity} shops
    (read|saw) that {sports_team} play in {city} {date} at {time}
    (read|saw) that {airline} flies to {city} from {day} for {money}
""")

# Requests: base-form clauses that follow "please", "I want to", "there is no need to".
REQUESTS: dict[str, tuple[str, ...]] = {
    "book_table": lines("""
        book a table for {quantity} at {restaurant} on {day}
        reserve seats at {restaurant} {date} at {time}
        get us (a table|seats) to eat dinner at {restaurant} for {time}
        find a place to eat in {city} for {quantity} people
        ask {restaurant} for a (quiet|window) table at {time}
        make sure {person} has a table for dinner at {restaurant} {date}
        hold a corner table for {quantity} at {restaurant} until {time}
        make a dinner reservation at {restaurant} under {person}
        see if {restaurant} has a free table, {quantity} of us want to eat {date}
    """),
    "book_hotel": lines("""
        book a room at {hotel} in {city} for {stay}
        reserve {quantity} rooms at {hotel} from {day}
        find a room to stay at {hotel} in {city} for {stay}
        get {person} a (double|single) room at {hotel} {date}
        ask {hotel} for a (quiet|sea view) room from {day}
        see if {hotel} has a double room free {date}
        put us up at {hotel} for under {money}
        make a reservation at {hotel} for {stay} under {person}
        reserve a (quiet|single) room at {hotel} near {street_address} {date}
    """),
    "book_flight": lines("""
        book a flight to {city} with {airline} on {day}
        reserve {quantity} seats with {airline} to {city}
        find a cheap flight from {city} to {city:2} {date}
        get {person} on the {airline} plane at {time}
        get {quantity} tickets to {city} for under {money}
        book a (return|window) seat on a plane to {city} leaving {date}
        see if {airline} flies to {city} on {day}
        put {person} on the {time} from {city} to {city:2}
        reserve {quantity} tickets with {airline} for the flight from {city}
    """),
    "cancel_booking": lines("""
        cancel the (table|dinner) at {restaurant} on {day}
        cancel my (room|stay) at {hotel} in {city}
        cancel the {airline} flight to {city} {date}
        call off the reservation at {hotel} for {stay}
        get rid of the {quantity} seats with {airline} to {city}
        call off the dinner at {restaurant}, {person} no longer needs it
        undo the lunch booking for {quantity} at {restaurant}
        tell {hotel} that we no longer need the room from {day}
        undo the reservation of {person} for the flight with {airline} at {time}
    """),
    "change_booking": lines("""
        change the (table|dinner) at {restaurant} to {time}
        move my (room|stay) at {hotel} to {day}
        change the {airline} flight to {city} from {day} to {day:2}
        make the table at {restaurant} for {quantity} instead of {quantity:2}
        put the room reservation at {hotel} under {person}
        move the flight with {airline} back by {wait}
        ask {restaurant} to seat us at {time} rather than {time:2}
        change my seats on the {airline} flight to {city} to {time}
        make it {quantity} seats to {city} on {day} rather than {quantity:2}
    """),
    "order_food": lines("""
        order {quantity} {dish} from {restaurant}
        get {dish} delivered to {street_address} at {time}
        have {quantity} portions of {dish} delivered to {person}
        ask {restaurant} to bring {dish} to {street_address}
        buy food from {restaurant} for {quantity} people
        order food for under {money}, maybe {dish}
        put {quantity} {dish} on my order at {restaurant}
        see if {restaurant} delivers {dish} {date}
        see if {restaurant} can bring {dish} for {person}
    """),
    "track_order": lines("""
        track my order {code} from {organization}
        find out where the {product} I ordered {past} is
        find out when the {dish} ordered from {restaurant} will be here
        check if the parcel to {street_address} has left
        look up when {organization} will deliver my {product}
        track where the parcel with {quantity} {product} is
        find out why my {product} has not been delivered after {stay}
        ask {restaurant} where the food for {person} is
        check where order {code} is, it left {past}
    """),
    "return_product": lines("""
        return the {product} I bought {past}
        get my {money} back for the {product}
        return the {product} to {organization}
        have {organization} (replace|take back) order {code}
        ask for a refund on {quantity} {product} from {organization}
        get a refund for my {product}, it broke after {stay}
        give back the {product} that {person} ordered
        get {organization} to refund {money} for order {code}
        ask {organization} to take back the {product} I bought {past}
    """),
    "transfer_money": lines("""
        send {money} to {person}
        transfer {money} to the firm {organization} on {day}
        transfer {money} to {person} for dinner at {restaurant}
        move {money} from my savings to {person}
        give {person} {money} for the tickets to {event}
        send {money} from my savings to {person} {date}
        settle what I owe {person} for the room at {hotel}, {money} in all
        pay the {organization} bill of {money}
        give {person} the {money} that I owe for {dish}
    """),
    "check_account": lines("""
        check if {money} from {person} has arrived
        find out how much I paid in the shops of {organization} {past}
        find out what is left in my account after the stay at {hotel}
        look up what I spent in {city} {past}
        check why the company {organization} took {money}
        check if the refund of {money} from {organization} has arrived
        see if I have {money} left in my account to pay {person}
        look up the last payment for food from {restaurant}
        look up how much I spent with {airline} {past}
    """),
    "set_reminder": lines("""
        remind me to pay {person} {money} on {day}
        set an alarm for {time} so I can take {medication}
        set a reminder for {event} on {day} at {time}
        make a note to return the {product} {date}
        wake me at {time} for the flight to {city}
        remind me about the table at {restaurant} {wait} before
        put the meeting with {person} on {day} at {time}
        set a timer for {wait} for the {dish}
        make a note for {time}, when {person} lands in {city}
    """),
    "play_media": lines("""
        play {song} in the {room}
        put on {movie} on the big screen at {time}
        play the song {song} by {person}
        stream the film {movie} on my {product}
        put {song} on while I cook {dish}
        put {song} on at {event} and turn it up
        start {movie} from the scene where {person} stopped {past}
        turn up {song} in the {room} for {wait}
        stream {song} and then {song:2} in the {room} for {person}
    """),
    "control_home": lines("""
        turn off the (light|heater) in the {room} at {time}
        set the {room} to {percent} brightness for {wait}
        turn on the {product} in the {room} at {time}
        lock the front door at {street_address} when {person} leaves
        put the heating on in the {room} {wait} before {time}
        turn off the heating and the {product} after {wait}
        let {person} in at {street_address}, open the gate
        turn up the {room} lamp until {person} sleeps
        set the {room} (lamp|light) to {percent} while {person} sleeps
    """),
    "get_weather": lines("""
        check if it will rain in {city} on {day}
        find out how cold {city} gets {date}
        check the forecast for rain in {city} when {person} lands {date}
        look up the forecast for {event} {date}
        find out how hot {city} was {past}
        find out if it will be cold in {city} before the {airline} flight
        see if there is snow on the way to {city} {date}
        look up whether it is sunny at the pool of {hotel} in {city}
        look up whether it will rain or snow in {city} until {time}
    """),
    "get_directions": lines("""
        find the way to our table at {restaurant} from {street_address}
        show me how to get to our room at {hotel} from {city}
        find the way from {city} to {city:2}
        take me to {street_address} by {time}
        check how long the drive to {event} takes at {time}
        show {person} the way from the lobby of {hotel} to {street_address}
        see which bus goes to {street_address} at {time}
        find out how to reach {restaurant} on foot and eat in {wait}
        check how long it takes from {restaurant} to {street_address} on foot
    """),
}

# Statements: clauses that follow "did you hear that".
STATEMENTS: dict[str, tuple[str, ...]] = {
    "sports_news": lines("""
        {sports_team} beat {sports_team:2} {score} {past}
        {person} of {sports_team} is hurt for {stay}
        {sports_team} won the game at home in {city} {past}
        {sports_team} paid {money} for {person}
        {person} won in {city} in under {wait}
        the players of {sports_team} beat {sports_team:2} without {person}
        {sports_team} were late to {city} and still won {score}
        {quantity} players of {sports_team} missed the game in {city}
        {sports_team} won {score} although {person} was hurt
    """),
    "business_news": lines("""
        {organization} cut jobs in {city} {past}
        {person} leaves {organization} on {day}
        {organization} sold its offices in {city} for {money}
        {organization} lost {percent} after the {product} came late
        {organization} opened {quantity} offices in {city}
        sales of {product} fell {percent} and {organization} cut jobs
        {airline} and all its planes were sold to {organization} {past}
        {organization} won a deal with {hotel} in {city}
        {person} won a deal for {organization} in {city}
    """),
    "restaurant_review": lines("""
        the {dish} at {restaurant} was cold
        {restaurant} charged {money} for {dish}
        we waited {wait} for the {dish} at {restaurant}
        the waiters at {restaurant} in {city} were lovely
        {restaurant} has the best {dish} in {city}
        the waiters charged {person} {money} for cold {dish}
        dinner at {restaurant} was too loud for {quantity} of us
        the {dish} came late and cost {money}
        dinner at {restaurant} came late and was cold {past}
    """),
    "product_complaint": lines("""
        my {product} stopped working after {stay}
        the {product} from {organization} gets hot after {wait}
        {organization} charged me {money} for a {product} without a battery
        the {product} came late and without a plug
        the screen of my {product} went dark {past}
        the screen of the {product} stopped working and {person} is angry
        the {product} was {money} and the battery is gone
        {organization} lost my {product} in the repair {past}
        nobody at {organization} in {city} can repair my {product}
    """),
    "travel_trouble": lines("""
        the {airline} flight to {city} was {wait} late
        {airline} lost {quantity} of our bags in {city}
        {hotel} lost our booking, the room cost {money}
        we waited {wait} for a bus in {city} {past}
        {hotel} gave our room to {person}
        the flight to {city} left the gate without {person}
        {airline} charged me {money} for a small bag
        {person} was stopped at the gate in {city} {past}
        we waited {wait} for our bags in {city}
    """),
}

# Frames put a clause into a sentence. The label is that of {ask}; {other} is a clause of another
# label and {fact} a statement. No single word tells which is which: the order and the frame do.
REQUEST_FRAMES = lines("""
    (please|) {ask}
    (can|could|would) you {ask}?
    I (want|need|would like) to {ask}
    no need to {other}, (just|only) {ask}
    don't {other}, {ask} instead
    I was going to {other}, but now I have to {ask}
    {ask}, there is no need to {other}
    {ask}, (please|) don't {other}
    {ask} now, I was going to {other} but that can wait
    someone already helped me {other}, what is left is to {ask}
    I asked you to {other} by mistake, I meant {ask}
    {ask} is what I meant, not {other}
    (hi|hello), is there a way to {ask}?
    (help me|I have to) {ask}, thanks
    (hey|hi), I have been trying to {ask}, can you help?
    I know {fact}, but (please|) {ask}
    {ask}, even if {fact}
    since {fact}, (please|could you) {ask}
""")

STATEMENT_FRAMES = lines("""
    did you hear that {ask}?
    (just|) (read|saw) that {ask}
    (so|well), {ask}, (sadly|as expected|and that is that)
    never mind that {other}, the point is that {ask}
    {ask}, never mind that {other}
    the point is that {ask}, never mind that {other}
    although {other}, my message is that {ask}
    my message is that {ask}, although {other}
    this is about how {ask}, not about how {other}
    people say {other}, yet I write because {ask}
    I write because {ask}, while people say {other}
    this is not about how {other}, it is about how {ask}
""")
