-- Runs once, when the database is made. The API and the workers own their tables, and nothing beyond them: their role is
-- no superuser. The superuser keeps no password, so it is reached from inside the container alone.
\set password `cat /run/secrets/database_password`
CREATE ROLE secureblogs LOGIN PASSWORD :'password';
ALTER DATABASE secureblogs OWNER TO secureblogs;
ALTER ROLE postgres PASSWORD NULL;
