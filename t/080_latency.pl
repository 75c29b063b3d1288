# From commit to acknowledged, with one client and nothing else to do, beside
# the round trip of librdkafka alone to the same broker.
#
# The aim is that the medians are within 2 ms.  What is measured depends on the
# neighbours of this machine, so both are taken in turns, are printed, and only
# a difference that no neighbour explains is a failure.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap);
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $rounds = $ENV{STRESS} ? 20 : 5;
my $n = 150;        # measured in a round
my $apart = 20;     # milliseconds between two of them: the system is idle
my $aim = 2;        # milliseconds
my $limit = 20;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 1) foreach (qw(orders raw));
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	conf => 'autovacuum = off',
	extension => ['postgres']);
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE orders (id bigserial PRIMARY KEY, customer int, product int, quantity int);
SELECT outbox.attach('orders', 'orders');
EOS

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/insert.sql",
	"\\sleep $apart ms\nINSERT INTO orders (customer, product, quantity) VALUES (1, 2, 3);\n");

# In milliseconds: from the commit as its client saw it, from the INSERT as its
# client sent it, and of librdkafka alone.
my (@after_commit, @after_insert, @alone);

# pgbench's log tells when a client saw its commit.  The SENT mark was made when
# the publisher had the acknowledgement, by the same clock: that it was in a
# transaction of its own by then makes it late, if anything.
sub outbox_round
{
	my ($count) = @_;

	$node->safe_psql('postgres', 'TRUNCATE orders');
	unlink(glob("$dir/log*"));
	is( reap(
			spawn_guarded(
				{}, $node->installed_command('pgbench'),
				'-n', '-h', $node->host, '-p', $node->port, '-c', 1, '-t', $count,
				'-f', "$dir/insert.sql", '-l', "--log-prefix=$dir/log", 'postgres'),
			0, 120),
		0, "$count orders");
	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE status <> 'SENT'", 0);

	my @sent = split /\n/, $node->safe_psql('postgres', <<"EOS");
SELECT extract(epoch FROM m.updated_at), extract(epoch FROM m.created_at)
FROM outbox.message AS m JOIN orders AS o ON o.id = (m.payload::jsonb ->> 'id')::bigint
ORDER BY o.id
EOS
	my ($log) = glob("$dir/log*");
	my @seen = split /\n/, slurp_file($log);

	is(scalar(@sent), scalar(@seen), 'each of them was sent');
	foreach my $i (0 .. $#seen)
	{
		my (undef, undef, undef, undef, $second, $microsecond) = split / /, $seen[$i];
		my ($sent, $captured) = split /\|/, $sent[$i];

		push @after_commit, ($sent - $second - $microsecond / 1e6) * 1000;
		push @after_insert, ($sent - $captured) * 1000;
	}
	return;
}

sub alone_round
{
	my ($count) = @_;
	my %result = split / /, $kafka->ktool('rtt', 'raw', $count, $apart);

	push @alone, \%result;
	return;
}

sub percentile
{
	my ($share, @values) = @_;

	@values = sort { $a <=> $b } @values;
	return $values[ int($share * @values) ];
}

outbox_round(20);
@after_commit = @after_insert = ();
foreach my $round (1 .. $rounds)
{
	alone_round($n);
	outbox_round($n);
}

# of the rounds: ktool gives no single values
my %alone = map {
	my $which = $_;
	$which => percentile(0.5, map { $_->{$which} / 1000 } @alone)
} qw(p50 p99);
my %outbox = (p50 => percentile(0.5, @after_commit), p99 => percentile(0.99, @after_commit));
my %insert = (p50 => percentile(0.5, @after_insert), p99 => percentile(0.99, @after_insert));

diag(sprintf('commit to acknowledged: p50 %.2f ms, p99 %.2f ms', @outbox{qw(p50 p99)}));
diag(sprintf('capture, in the INSERT, to acknowledged: p50 %.2f ms, p99 %.2f ms', @insert{qw(p50 p99)}));
diag(sprintf('librdkafka alone, same broker: p50 %.2f ms, p99 %.2f ms', @alone{qw(p50 p99)}));

my $difference = $outbox{p50} - $alone{p50};

diag(sprintf('p50 differs by %.2f ms: %s the aim of %d ms', $difference,
		$difference <= $aim ? 'within' : 'NOT within', $aim));
cmp_ok($difference, '<', $limit, 'the median is near the round trip to the broker');

$node->stop('fast');
done_testing();
