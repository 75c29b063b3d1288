# The README's example: both sides of a topic in SQL, just as they stand there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 6) foreach ('orders', 'order-results');
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap);

my @blocks = slurp_file("$FindBin::RealBin/../README.md") =~ /^ *```sql\n(.*?)^ *```/msg;

# The blocks with all of these in them, from a list of which it must be one.
sub block
{
	my @patterns = @_;
	my @found = @blocks;

	foreach my $pattern (@patterns)
	{
		@found = grep { /$pattern/ } @found;
	}
	is(scalar(@found), 1, "the README has one block with @patterns");
	return $found[0];
}

my $orders = block(qr/CREATE EXTENSION outbox/, qr/CREATE TABLE orders/);
my $warehouse = block(qr/CREATE FUNCTION reserve/);
my $shop = block(qr/CREATE FUNCTION cancel_order/);

$node->safe_psql('postgres', "CREATE DATABASE $_") foreach ('shop', 'warehouse');

# The topics are there, so that what the block asks the brokers for is refused.
$node->safe_psql('shop', $orders);
wait_for_value($node, 'shop',
	q{SELECT payload, status, attempts FROM outbox.message},
	'{"orderId":1,"productId":7,"quantity":3}|SENT|1');

$node->safe_psql('warehouse', 'CREATE EXTENSION outbox');
$node->safe_psql('shop', $shop);
$node->safe_psql('warehouse', $warehouse);
wait_for_value($node, 'shop',
	q{SELECT count(*) FROM orders WHERE status = 'PLACED'}, '0');
is( $node->safe_psql('shop', q{SELECT order_id, quantity, status FROM orders ORDER BY order_id}),
	"1|3|CONFIRMED\n2|3|CONFIRMED\n"
	  . '3|100|CANCELLED: new row for relation "stock" violates check constraint "stock_quantity_check"',
	'the orders are confirmed, or cancelled with the reason');
is($node->safe_psql('warehouse', 'SELECT quantity FROM stock'), '4',
	'and the stock is taken for those that are confirmed');
is( $node->safe_psql('shop', q{SELECT status, count(*) FROM outbox.message GROUP BY 1 ORDER BY 1}),
	"CONFIRMED|2\nFAILED|1", 'the messages have their status');

$node->stop;
$kafka->stop;
done_testing();
