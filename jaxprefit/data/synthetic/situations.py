"""Situations of the generated text: two sides that share slots and are worded differently."""

from .templates import lines

# Each situation: ways to write the first text, ways to write the second.
SITUATIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = tuple(
    (lines(first), lines(second))
    for first, second in (
        (  # invitation and reply
            """
            (hey|hi) {person}, dinner at {restaurant} on {day} at {time}?
            we are going to {restaurant} {date} with {person}, join us at {time}?
            {person} and I want to try {restaurant} {date}, are you in?
            """,
            """
            (sounds good|lovely), I have wanted to eat at {restaurant}, will {person:2} come?
            sorry, I can't make it to dinner, {person:2} is in town for {stay}
            count me in, but {time} is early, can we order the {dish}?
            """,
        ),
        (  # table request and confirmation
            """
            I would like a table for {quantity} at {restaurant} on {day} at {time}
            can you seat {quantity} of us at {restaurant} at {time}?
            do you have room for {quantity} at {time}? the name is {person}
            """,
            """
            your reservation at {restaurant} is confirmed, we hold it for {wait}
            confirmed: {quantity} guests, {time}, under {person}, see you at {restaurant}
            we look forward to welcoming {person} and guests, call {phone_number} for changes
            """,
        ),
        (  # hotel question and answer
            """
            is there a gym or a pool at {hotel} in {city}?
            what time can we check in at {hotel} on {day}?
            how much is a room at {hotel} for {stay}?
            """,
            """
            guests of {hotel} may arrive from {time} and pay {money} a person
            thank you for writing to {hotel}, the front desk is at {phone_number}
            a double in our house in {city} costs {money}, breakfast is included
            """,
        ),
        (  # flight change and notice
            """
            my {airline} flight to {city} leaves too early, can I leave on {day}?
            I need to move flight {code} with {airline} to {day}
            please put {person} on a later plane to {city} {date}
            """,
            """
            {airline}: your new departure to {city} is at {time}, the fee is {money}
            the change is done, {person} now travels on {day} at {time}
            dear passenger, trip {code} has been rebooked, be at the gate {wait} before
            """,
        ),
        (  # order question and status
            """
            where is my {product}? I ordered it from {organization} {past}
            order {code} should have been here by now, what is going on?
            {organization} said the {product} would take {stay}, it has been longer
            """,
            """
            your parcel {code} left our store and gets to {street_address} on {day}
            {organization} here, the courier will deliver the {product} {date}
            sorry for the delay, the {product} is on its way and arrives by {time}
            """,
        ),
        (  # refund request and answer
            """
            the {product} I bought {past} is broken, I want my {money} back
            how do I return a {product} to {organization}?
            {organization} charged me {money} for a {product} that never worked
            """,
            """
            we are sorry to hear that, a refund of {money} is on its way
            print the label, send the device back and {organization} pays you within {stay}
            please bring the {product} to our shop at {street_address} with the receipt
            """,
        ),
        (  # restaurant review, title and body
            """
            the best {dish} in {city}, (go|try it)
            {restaurant}: (slow|rude) service, (cold|bland) food
            a nice evening out with {person} at {restaurant}
            """,
            """
            we had the {dish} and it was worth every bit of the {money} we paid
            waited {wait} for our plates at {restaurant} and nobody said sorry
            {person} picked this place, the staff were kind and the {dish} was (rich|fresh)
            """,
        ),
        (  # movie review, title and body
            """
            {movie} is (a triumph|a mess) from start to end
            go and see {movie} with {person}
            {person} shines in {movie}
            """,
            """
            the film drags for {wait}, but {person} and the music by {person:2} save it
            I watched it in {city} {past} and half of the audience cried
            {song} plays over the last scene of {movie} and it is hard to forget
            """,
        ),
        (  # product review, title and body
            """
            {product} after {stay}: (still great|not worth it)
            {organization} got the {product} (right|wrong)
            don't pay {money} for a {product}
            """,
            """
            the battery is gone by {time} and the screen has a scratch already
            I bought {quantity} of these for {money} and {organization} sent them fast
            my {product} feels solid, the camera is sharp and {person} wants one
            """,
        ),
        (  # sports headline and first sentence
            """
            {sports_team} (beat|crush|edge) {sports_team:2} {score}
            {person} the hero as {sports_team} win in {city}
            {sports_team:2} fall to {sports_team} in {city}
            """,
            """
            a late goal by {person} was enough for {sports_team} {past}
            the visitors from {city} had no answer to {person} and went down {score}
            the fans of {sports_team:2} left early, their side never looked like scoring
            """,
        ),
        (  # business headline and first sentence
            """
            {organization} to buy {organization:2} for {money} a share
            {organization} shares (drop|jump) {percent} as {person} quits
            {organization} opens new shops in {city}
            """,
            """
            the deal between {organization} and its rival was announced {past} in {city}
            {person} leads the firm since {month} and had promised growth to investors
            the company hires {quantity} engineers and says {product} sells well
            """,
        ),
        (  # weather question and answer
            """
            will it rain in {city} on {day}?
            do I need a coat for {event} in {city}?
            what is the forecast for {city} {date}?
            """,
            """
            yes, showers from {time} on, take an umbrella to {event}
            it will be cloudy and cold in {city}, with wind for {wait}
            mostly sun, the chance of rain is {percent} after {time}
            """,
        ),
        (  # medication question and answer
            """
            how often should {person} take {medication}?
            can I drink coffee with {medication}? I started it {past}
            I forgot my {medication} at {time}, what (now|should I do)?
            """,
            """
            the usual dose is {quantity} with each meal for {stay}
            don't worry, take {medication} as soon as you can and skip none after that
            please ask the pharmacy at {phone_number}, they know what {person} was given
            """,
        ),
        (  # transfer and notification
            """
            send {money} to {person} for the tickets to {event}
            I owe {person} {money} since {past}, please pay it
            pay the bill of {organization} on {day}, it is {money}
            """,
            """
            your payment of {money} was made, {person} gets it within {stay}
            transfer to {person} done, reference {code}, call {phone_number} if this was not you
            we took {money} from your account for the company {organization}
            """,
        ),
        (  # event announcement and question
            """
            {event} comes to {city} on {day}, tickets from {money}
            {person} plays at {event} {date}
            get your ticket for {event}, doors open at {time}
            """,
            """
            are there seats left for {quantity}? we want to hear {person} sing {song}
            is {event} fine for kids, and how late will it be over?
            we travel to {city} for it, which hotel is near, maybe {hotel}?
            """,
        ),
        (  # directions
            """
            how do I get from my room at {hotel} to {street_address}?
            is {restaurant} far from {street_address}? we are hungry
            I am lost near {street_address}, where is {restaurant}? our table is ready
            """,
            """
            walk along the river {landmark} for {wait}, it is on your left
            take the bus at {time} and get off at {street_address}
            it is a short ride, enjoy the food at {restaurant} or call {phone_number}
            """,
        ),
        (  # meeting and reply
            """
            can we move the meeting with {person} to {day} at {time}?
            {person} from {organization} asks to talk {date}
            the call with {organization} is at {time}, will you be there?
            """,
            """
            {day} is fine with me, I told {organization} and booked a room for {wait}
            I am on a plane to {city} then, ask {person:2} to take my place
            ok, tell {person} to ring me on {phone_number}
            """,
        ),
        (  # home command and answer
            """
            the {product} in the {room} should come on at {time}
            it is too (cold|dark) in the {room}, do something
            play {song} in the {room} when {person} comes home
            """,
            """
            ok, the {room} will be ready for {person} at {time}
            done, the {product} runs for {wait} and then goes off
            {song} is on, the {room} lamp is at {percent}
            """,
        ),
    )
)
