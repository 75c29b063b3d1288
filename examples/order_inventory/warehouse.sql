-- The inventory side: a database "warehouse".
--
-- It hears of orders on the topic "orders", reserves the goods or refuses, and
-- answers on the topic "order-results".  Run it as a superuser; the business
-- itself is done by the role warehouse, who isn't one.

\set ON_ERROR_STOP on
SELECT 'CREATE ROLE warehouse LOGIN' WHERE NOT EXISTS
	(SELECT FROM pg_roles WHERE rolname = 'warehouse') \gexec

CREATE EXTENSION outbox;

CREATE SCHEMA warehouse AUTHORIZATION warehouse;

-- What the role needs to do the rest by itself
GRANT USAGE ON SCHEMA outbox TO warehouse;
GRANT USAGE ON TYPE outbox.record TO warehouse;
GRANT EXECUTE ON FUNCTION outbox.subscribe TO warehouse;
SELECT outbox.grant_topic('orders', 'warehouse', 'subscribe');
SELECT outbox.grant_topic('order-results', 'warehouse', 'send');

SET ROLE warehouse;
SET search_path = warehouse;

CREATE TABLE stock (
	product_id int PRIMARY KEY,
	quantity int NOT NULL CHECK (quantity >= 0)
);

CREATE TABLE reservation (
	order_id bigint PRIMARY KEY,
	product_id int NOT NULL REFERENCES stock,
	quantity int NOT NULL
);

-- Reserves what an order wants.  An exception refuses it: nothing of the call
-- remains, and its text goes back to the shop.
CREATE FUNCTION reserve(record outbox.record) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	wanted jsonb := record.payload;
BEGIN
	INSERT INTO warehouse.reservation
		VALUES ((wanted ->> 'orderId')::bigint, (wanted ->> 'productId')::int,
				(wanted ->> 'quantity')::int);
	UPDATE warehouse.stock SET quantity = quantity - (wanted ->> 'quantity')::int
		WHERE product_id = (wanted ->> 'productId')::int;
EXCEPTION
	WHEN check_violation THEN
		RAISE EXCEPTION 'product % is out of stock', wanted ->> 'productId';
	WHEN foreign_key_violation THEN
		RAISE EXCEPTION 'there is no product %', wanted ->> 'productId';
END
$$;

SELECT outbox.subscribe('orders', 'reserve(outbox.record)', reply_topic => 'order-results');
