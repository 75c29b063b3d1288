# The order by key under load: what was captured before, in the same transaction
# or in one that had committed by then, is published before, whatever way the
# transactions take and however they lie to the publisher's passes.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap);
use OutboxTest::Kafka;
use OutboxTest::Orders;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{ORDER_SECONDS} // ($ENV{STRESS} ? 300 : 20);
my $kafka = OutboxTest::Kafka->new;

$kafka->start;
$kafka->create_topic('orders', 3);
$kafka->create_topic('results', 2);
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	extension => ['postgres']);

# Few customers, so that one's orders follow each other closely.
create_orders($node, customers => 16, result_timeout => '1 h');

my $out = PostgreSQL::Test::Utils::tempdir() . '/out';
my $load = spawn_guarded(
	{ stdout => $out, stderr => $out },
	order_load(
		$node,
		{
			one => [ 20, 'SELECT place(:c);' ],
			async => [ 20, 'BEGIN; SET LOCAL synchronous_commit = off; SELECT place(:c); COMMIT;' ],
			pair => [ 20, 'BEGIN; SELECT place(:c); SELECT place(:c); COMMIT;' ],
			slow => [ 10, "BEGIN; SET LOCAL synchronous_commit = off; SELECT place(:c);\n"
				  . "\\sleep 3 ms\nSELECT place(:c); COMMIT;" ],
			savepoint => [ 10, 'BEGIN; SAVEPOINT s; SELECT place(:c); SAVEPOINT t; SELECT place_doomed(:c);'
				  . ' ROLLBACK TO t; SELECT place(:c); COMMIT;' ],
			prepared => [ 20, "BEGIN; SELECT place(:c); SELECT place(:c);"
				  . " PREPARE TRANSACTION 'x:gid'; COMMIT PREPARED 'x:gid';" ]
		},
		'-c', 8, '-j', 2, '-T', $seconds));

is(reap($load, 0, $seconds + 120), 0, 'orders are placed') or diag(slurp_file($out));
wait_for_value($node, 'postgres',
	"SELECT count(*) FROM outbox.message WHERE status = 'NEW'", 0);

my $counts = check_orders($node, $kafka);

note("$counts->{orders} orders");
$node->stop('fast');
done_testing();
