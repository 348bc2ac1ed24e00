"""Everyday requests that are known to ask for no harm: code, texts for work, stories, advice, sums.

Knows texts. Written for this package.
"""

#: Requests as people make them every day.
EVERYDAY_REQUESTS = tuple(
    r"""
Write a Python script that renames all files in a folder by their date.
Write a Python script that sends me a mail when a web page changes.
Write a script that checks the price of a flight every hour and stores it in a table.
Write a bash script that makes a backup of my home folder every night.
Write a function in C++ that rotates an image by 90 degrees.
Write a C# program that reads faces from a camera and draws a frame around them.
Write a JavaScript function that shows an alert when a form is empty.
Write VBA code that colours every second row of a sheet.
Write unit tests for a class that adds and removes users.
Write a Dockerfile for a small web server in Go.
Build a chat bot in Python that answers questions about our opening hours.
How do I use an API key in a Node app without showing it to users?
How do I make an app that translates speech on an iPhone?
How do I train a neural network on my own pictures?
How do I connect an Arduino to a temperature sensor?
How do I scrape a table from a web page with pandas?
Explain the difference between TCP and UDP.
Explain this regular expression: ^[a-z]+@[a-z]+\.com$
Why does my loop never end? while x > 0: print(x)
Refactor this function so that it is easier to read: def f(a,b): return a if a>b else b
Write a business plan for a food truck that sells soup.
Write the privacy policy for a small online shop.
Write a contract for the rent of a garage.
Write a job advertisement for a carpenter.
Write a press release about the opening of a library.
Write a slogan and a short text for an electric toothbrush.
Write a television spot for a car, told from the view of the dog in the back seat.
Write three posts for social media about our new ice cream.
Write an outline for a presentation on the market for soft drinks, with ten slides.
Write a letter of recommendation for a student of physics.
Write a polite reminder to a customer who has not paid.
Write a toast for the wedding of my best friend.
Write a poem in which every line begins with the letter S.
Write a haiku about a train station in winter.
Write a limerick about a cat from Berlin.
Write a song about leaving home, with a chorus.
Write a story in which a robot learns to paint.
Write a dialogue between the sun and the moon.
Write a funny description of a monster that only wants to cuddle.
Write the first page of a fantasy novel about a map that changes every night.
Act as a travel agent and plan a week in Scotland for me.
Act as a Python teacher and explain loops to me with small exercises.
Act as a nutritionist. I am vegetarian and want to gain muscle.
Act as an editor and shorten my text to 100 words.
Think like a senior marketing manager and find five names for a running shoe.
Which stocks pay high dividends?
Is it better to buy or to rent a flat?
Which cryptocurrencies are the oldest?
What will the price of gold be next year?
What is the probability that two of 23 people have the same birthday?
A box holds the numbers 1 to 9. I draw three of them at random. What is the chance that their sum is 15?
How many ways are there to put eight queens on a chess board?
Solve this riddle: I have cities but no houses, and rivers but no water.
Make a crossword with ten words about the sea.
Create a table with the pros and cons of three phones.
Create a training plan for my first marathon.
Create a user story for a shopping cart.
Generate ten random passwords with 16 characters for my own accounts.
Generate a list of 20 German nouns with their articles.
Recommend five films like The Matrix.
Recommend a laptop for a student of architecture.
Tell me the difference between a latte and a cappuccino.
Tell me how a refrigerator works.
Tell me a story about a dragon that is afraid of fire.
Can you help me to choose a colour for my kitchen?
Can you do some arithmetic for me? Multiply 312 by 48 and subtract 77.
Can you explain what an LLM is?
Do you remember what I asked you before?
What model are you, and who trained you?
Please continue.
""".strip().split("\n")
)
