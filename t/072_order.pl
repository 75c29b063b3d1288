# The order by key under load: what was captured before, in the same transaction
# or in one that had committed by then, is published before, whatever way the
# transactions take and however they lie to the publisher's passes, and also
# where Kafka turns a whole request down.

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

# Requests of up to 100 kB, of which the topic takes 50: all of the messages in
# one go again, alone, and what is behind must wait for them.  The first message
# has the client know the topic, so that the others form large requests.
foreach my $n (100, 110, 120, 130, 140)
{
	my $topic = "narrow-$n";
	my $status = "SELECT string_agg(DISTINCT status::text, ' '), count(*) FROM outbox.message WHERE topic = '$topic'";

	$kafka->create_topic($topic, 1, 'max.message.bytes' => 50_000);
	$node->safe_psql('postgres', "SELECT outbox.send('$topic', '0'::text, 'k')");
	wait_for_value($node, 'postgres', $status, 'SENT|1');
	$node->safe_psql('postgres',
		"SELECT count(outbox.send('$topic', format('%s %s', i, repeat('x', 1000)), 'k'))
		 FROM generate_series(1, $n) AS i");
	wait_for_value($node, 'postgres', $status, 'SENT|' . ($n + 1));
	is_deeply([ map { /^(\d+)/ } map { $_->{value} } $kafka->consume($topic) ],
		[ 0 .. $n ], "requests that are turned down, $n messages: once each, in order");
}
$node->stop('fast');
done_testing();
