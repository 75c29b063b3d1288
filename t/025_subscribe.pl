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
	is($node->safe_psql('shop', 'SELECT status, count(*) FROM outbox.message GROUP BY 1 ORDER BY 1'),
		"CONFIRMED|3\nFAILED|3", 'and the messages have their status');
};

$node->stop;
$kafka->stop;
done_testing();
