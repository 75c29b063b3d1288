# Errors in the middle of a batch, which goes to several partitions and has many
# keys: nothing is lost, and the first copies are in order by key.  Some of the
# errors are fatal to the Kafka client, which is made anew.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant PRODUCE => 0;

# Some 40 requests of 100 kB: the first are answered while the last are being made
my ($messages, $bytes, $keys) = (3800, 1000, 50);

my $mock = OutboxTest::Mock->new;
$mock->start;
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, extension => ['postgres']);

sub query { return $node->safe_psql('postgres', @_); }

sub publisher
{
	my ($columns) = @_;
	return query("SELECT $columns FROM outbox.worker WHERE kind = 'publisher'");
}

# All of them are to be one batch
sub send_batch
{
	my (@topics) = @_;

	set_conf($node, 'outbox.enabled' => 'off');
	wait_for_value($node, 'postgres',
		q(SELECT state FROM outbox.worker WHERE kind = 'publisher'), qr/^resting/);
	query(<<"EOS");
SELECT outbox.send(CASE WHEN i % $keys % 4 = 0 THEN '$topics[0]' ELSE '$topics[1]' END,
	rpad(i || ' ', $bytes, 'x'), 'key-' || i % $keys)
FROM generate_series(1, $messages) AS i
EOS
	set_conf($node, 'outbox.enabled' => 'on');
	return;
}

# What is lost, and what comes before an earlier one of its key.  Returns how many
# copies there are besides the first ones.
sub check_records
{
	my (@topics) = @_;
	my (%seen, %last, @unordered);
	my $records = 0;

	foreach my $record (map { $mock->consume($_) } @topics)
	{
		my ($n) = $record->{value} =~ /^(\d+) x*$/;

		$records++;
		next if $seen{$n}++;
		push @unordered, $n if $n < ($last{ $record->{key} } // 0);
		$last{ $record->{key} } = $n;
	}
	my @lost = grep { !$seen{$_} } 1 .. $messages;

	splice(@$_, 10) foreach (grep { @$_ > 10 } \@lost, \@unordered);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is("@lost", '', 'nothing is lost');
	is("@unordered", '', 'first copies are in order by key');
	return $records - keys %seen;
}

my ($number, $finished) = (0, 0);

# The errors come after so many requests that are answered well.  Returns the log.
sub fail_after
{
	my ($code, @after) = @_;
	my @topics = map { "topic-$number-$_" } 1, 4;
	my $log_start = -s $node->logfile;

	$number++;
	$mock->create_topic($topics[0], 1);
	$mock->create_topic($topics[1], 4);
	$mock->push_errors(PRODUCE, map { ((0) x $_, $code) } @after);
	send_batch(@topics);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( wait_for_value($node, 'postgres',
			q(SELECT count(*) FROM outbox.message WHERE status <> 'SENT'), 0), 'all are SENT');
	my $log = slurp_file($node->logfile, $log_start);

	unlike($log, qr/ is held/, 'no topic was held');
	note(check_records(@topics) . ' duplicates');
	return $log;
}

# All over again with a new client, more than once
my %fatal = (
	OUT_OF_ORDER_SEQUENCE_NUMBER => 45, INVALID_PRODUCER_EPOCH => 47,
	INVALID_PRODUCER_ID_MAPPING => 49);

foreach my $name (sort keys %fatal)
{
	foreach my $after ([ 2 ], [ 8, 5 ])
	{
		subtest "$name after @$after requests" => sub {
			my $log = fail_after($fatal{$name}, @$after);
			my $bridges = () = $log =~ /stopped after a fatal error of the Kafka client: $name: /g;

			note("$bridges new clients");
			$finished += $bridges;
		};
	}
}

# Some of them librdkafka can live with.
cmp_ok($finished, '>=', 6, "a new client was needed $finished times");
is(query('SELECT count(*) FROM outbox.suspect'), 0, 'no message is suspected of it');

# A request is turned down: what is queued for all partitions is taken back
my %rejected = (MSG_SIZE_TOO_LARGE => 10, POLICY_VIOLATION => 44);
my $restarts = publisher('bridge_restarts');

foreach my $name (sort keys %rejected)
{
	foreach my $after (3, 8)
	{
		subtest "$name after $after requests" => sub { fail_after($rejected{$name}, $after) };
	}
}
cmp_ok(publisher('bridge_restarts'), '<=', $restarts + 4, 'no new client was needed, but after the rests');
is(publisher('restarts'), 0, 'the worker went on');

$node->stop('fast');
done_testing();
