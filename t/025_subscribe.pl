# Subscriptions: the other side, and the whole transaction between two
# databases.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap);

subtest 'the example' => sub {
	my $example = 'examples/order_inventory';

	$kafka->create_topic($_, 4) foreach ('orders', 'order-results');
	foreach my $database ('shop', 'warehouse')
	{
		$node->safe_psql('postgres', "CREATE DATABASE $database");
		$node->safe_psql($database, slurp_file("$example/$database.sql"));
	}
	$node->safe_psql('shop', "INSERT INTO shop.account VALUES ('Ada', 1000)");
	$node->safe_psql('warehouse', 'INSERT INTO warehouse.stock VALUES (1, 10), (2, 5)');
	$node->safe_psql('shop', "SELECT shop.place_order('Ada', p, q, 10)
		FROM (VALUES (1, 3), (2, 5), (1, 11), (2, 6), (3, 1), (1, 7)) AS o(p, q)");
	wait_for_value($node, 'shop',
		q{SELECT count(*) FROM shop.orders WHERE status = 'PLACED'}, '0');
	is($node->safe_psql('shop',
			"SELECT string_agg(status || coalesce(': ' || reason, ''), ', ' ORDER BY order_id)
			 FROM shop.orders"),
		'CONFIRMED, CONFIRMED, CANCELLED: product 1 is out of stock, '
		  . 'CANCELLED: product 2 is out of stock, CANCELLED: there is no product 3, CONFIRMED',
		'as the warehouse said');
	is($node->safe_psql('shop', 'SELECT credit FROM shop.account'), '970', 'the credit is back');
	is($node->safe_psql('warehouse', 'SELECT sum(quantity) FROM warehouse.stock'), '0',
		'the stock is taken');
	like($node->safe_psql('warehouse', 'SELECT last_error FROM outbox.subscription'),
		qr/^offset \d+: P0001: (product \d is out of stock|there is no product 3)$/,
		'which shows why it refused last');
	is($node->safe_psql('shop', 'SELECT status, count(*) FROM outbox.message GROUP BY 1 ORDER BY 1'),
		"CONFIRMED|3\nFAILED|3", 'and the messages have their status');
};

# Settings that ALTER ROLE gave the superuser are none of the handlers' business,
# those of the database and of their own role are.
subtest 'settings of a handler' => sub {
	$kafka->create_topic($_, 1) foreach ('settings', 'settings-replies');
	$node->safe_psql('postgres', q{
		CREATE EXTENSION outbox;
		CREATE ROLE app;
		ALTER ROLE postgres SET app.secret = 'superuser';
		ALTER ROLE postgres SET search_path = admin_only;
		ALTER ROLE postgres IN DATABASE postgres SET work_mem = '123MB';
		ALTER DATABASE postgres SET app.tenant = 'database';
		ALTER DATABASE postgres SET work_mem = '7MB';
		ALTER ROLE app SET app.owner = 'role';
		ALTER ROLE app SET transaction_read_only = on;
		GRANT USAGE, CREATE ON SCHEMA public TO app;
		GRANT USAGE ON SCHEMA outbox TO app;
		GRANT USAGE ON TYPE outbox.record TO app;
		GRANT EXECUTE ON FUNCTION outbox.subscribe TO app;
		SELECT outbox.grant_topic('settings', 'app', 'subscribe'),
			outbox.grant_topic('settings-replies', 'app', 'send')});
	# for the sessions of the workers to begin with them
	$node->restart;
	$node->safe_psql('postgres', q{
		SET ROLE app;
		CREATE FUNCTION public.tell(record outbox.record) RETURNS text LANGUAGE sql AS
			$$SELECT concat_ws(' ', current_user, current_setting('app.secret', true),
				current_setting('app.tenant', true), current_setting('app.owner', true),
				current_setting('search_path'), current_setting('work_mem'),
				current_setting('enable_seqscan'), current_setting('row_security'))$$;
		SELECT outbox.subscribe('settings', 'public.tell(outbox.record)',
			reply_topic => 'settings-replies')});
	$kafka->produce('settings', { key => 'k', value => 'x' });
	wait_for_value($node, 'postgres',
		q{SELECT payload::jsonb ->> 'result' FROM outbox.message},
		'app  database role "$user", public 7MB on on');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.message'), '1', 'it has answered');
};

$node->stop;
$kafka->stop;
done_testing();
