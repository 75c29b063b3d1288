-- The order side: a database "shop".
--
-- Each order becomes a message on the topic "orders".  The answer comes on the
-- topic "order-results", and confirms or cancels the order.  Run it as a
-- superuser; the business itself is done by the role shop, who isn't one.

\set ON_ERROR_STOP on
SELECT 'CREATE ROLE shop LOGIN' WHERE NOT EXISTS
	(SELECT FROM pg_roles WHERE rolname = 'shop') \gexec

CREATE EXTENSION outbox;

CREATE SCHEMA shop AUTHORIZATION shop;

-- What the role needs to do the rest by itself
GRANT USAGE ON SCHEMA outbox TO shop;
GRANT USAGE ON TYPE outbox.message TO shop;
GRANT EXECUTE ON FUNCTION outbox.capture() TO shop;
GRANT EXECUTE ON FUNCTION outbox.attach TO shop;
GRANT EXECUTE ON FUNCTION outbox.set_topic TO shop;
SELECT outbox.grant_topic('orders', 'shop', 'send');

SET ROLE shop;
SET search_path = shop;

CREATE TABLE account (
	customer text PRIMARY KEY,
	credit int NOT NULL CHECK (credit >= 0)
);

CREATE TABLE orders (
	order_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	customer text NOT NULL REFERENCES account,
	product_id int NOT NULL,
	quantity int NOT NULL CHECK (quantity > 0),
	price int NOT NULL,
	status text NOT NULL DEFAULT 'PLACED'
		CHECK (status IN ('PLACED', 'CONFIRMED', 'CANCELLED')),
	reason text
);

-- Places an order: takes the customer's credit.  The message comes by itself.
CREATE FUNCTION place_order(customer text, product_id int, quantity int, price int)
RETURNS bigint LANGUAGE sql
BEGIN ATOMIC
	UPDATE account SET credit = credit - place_order.price
		WHERE account.customer = place_order.customer;
	INSERT INTO orders (customer, product_id, quantity, price)
		VALUES (customer, product_id, quantity, price) RETURNING order_id;
END;

-- The warehouse has reserved the goods.
CREATE FUNCTION confirm_order(message outbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE shop.orders SET status = 'CONFIRMED'
		WHERE order_id = (message.payload::jsonb ->> 'orderId')::bigint
			AND status = 'PLACED';
	IF NOT FOUND THEN
		RAISE EXCEPTION 'order % is not open', message.payload::jsonb ->> 'orderId';
	END IF;
END
$$;

-- It has not: the customer gets the credit back.
CREATE FUNCTION cancel_order(message outbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	cancelled shop.orders;
BEGIN
	UPDATE shop.orders SET status = 'CANCELLED', reason = message.error
		WHERE order_id = (message.payload::jsonb ->> 'orderId')::bigint
			AND status = 'PLACED'
		RETURNING * INTO cancelled;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'order % is not open', message.payload::jsonb ->> 'orderId';
	END IF;
	UPDATE shop.account SET credit = credit + cancelled.price
		WHERE customer = cancelled.customer;
END
$$;

SELECT outbox.attach('orders', 'orders',
	columns => '{order_id as orderId, product_id as productId, quantity}');
SELECT outbox.set_topic('orders', result_topic => 'order-results',
	on_confirmed => 'confirm_order(outbox.message)',
	on_failed => 'cancel_order(outbox.message)');
