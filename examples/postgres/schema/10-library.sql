-- What the database holds from its first start on.
CREATE TABLE author (
    author_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text NOT NULL UNIQUE
);

CREATE TABLE book (
    book_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    author_id integer NOT NULL REFERENCES author,
    title     text NOT NULL,
    year      integer CHECK (year BETWEEN 1450 AND 2100)
);

CREATE VIEW shelf AS
SELECT author.name AS author, book.title, book.year FROM book JOIN author USING (author_id);
