INSERT INTO author (name) VALUES ('Mary Shelley'), ('Jules Verne');

INSERT INTO book (author_id, title, year)
SELECT author_id, title, year
FROM author
JOIN (VALUES
    ('Mary Shelley', 'Frankenstein', 1818),
    ('Mary Shelley', 'The Last Man', 1826),
    ('Jules Verne', 'Around the World in Eighty Days', 1872)
) AS given (name, title, year) USING (name);
