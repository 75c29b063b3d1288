# Topics that can't be published to, each with many messages that wait: one is
# missing, one denied by a rule, one has no leader, one is paused, and of one only
# a partition has no leader.  Another topic goes on as if it were alone, and each
# of them goes on in order when it is mended.
#
# "As if it were alone" is measured against a server of its own, in turns, with
# one of the two at rest.  That depends on the neighbours of this machine, so only
# a difference that no neighbour explains is a failure; STRESS=1 has more messages
# and rounds, and holds it to a factor of 1.2.

use strict;
use warnings;

use OutboxTest::Broker qw(partition_of);
use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap);
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $full = $ENV{STRESS};
my $waiting = $ENV{WAITING} // ($full ? 100_000 : 5_000);    # messages of each bad topic
my $rounds = $ENV{ROUNDS} // ($full ? 9 : 3);
my $burst = $full ? 50_000 : 5_000;     # messages at once, for the rate
my $singles = $full ? 150 : 40;         # one by one, for the latency
my $apart = 20;                         # milliseconds between two of these
my $limit = $full ? 1.2 : 5;
my $keys = 100;
my $publishers = $ENV{PUBLISHERS} // 4;

my $kafka = OutboxTest::Kafka->new(authorizer => 1);
$kafka->start;
my $second = $kafka->another_broker(2);
$second->start;
$kafka->create_topic_on($_, [ 1, 1, 1 ]) foreach (qw(denied paused good alone));
$kafka->create_topic_on('leaderless', [ 2, 2, 2 ]);
$kafka->create_topic_on('half', [ 1, 2, 1 ]);
$kafka->acl_add('User:ANONYMOUS', 'deny', 'write', 'topic', 'denied');
$second->stop;
wait_until('the partitions of the second broker have no leader',
	sub { "@{ $kafka->topics->{half} }" eq '1 -1 1' && "@{ $kafka->topics->{leaderless} }" eq '-1 -1 -1' });

# topic => server
my %node = map {
	$_ => new_outbox_node($_, bootstrap => $kafka->bootstrap, extension => ['postgres'],
		conf => "outbox.publishers = $publishers\nautovacuum = off\ncheckpoint_timeout = '1h'\nmax_wal_size = '4GB'")
} qw(alone good);
my $node = $node{good};
my %state = (missing => 'missing', denied => 'denied', leaderless => 'failing', paused => 'paused',
	half => 'failing');
my %sent = map { $_ => 0 } keys %state, qw(good alone);

# The next n messages of a topic; each names its number.  Returns the first and
# the last id and the time after their commit.
sub send_messages
{
	my ($topic, $n) = @_;
	my ($from, $to) = ($sent{$topic} + 1, $sent{$topic} + $n);

	$sent{$topic} = $to;
	my @ends = split /[|\n]/, ($node{$topic} // $node)->safe_psql('postgres', <<"EOS");
SELECT min(id::text), max(id::text) FROM (
	SELECT outbox.send('$topic', n || repeat(' ', 200), (n % $keys)::text) AS id
	FROM generate_series($from, $to) AS n) AS m;
SELECT extract(epoch FROM clock_timestamp());
EOS
	return @ends;
}

# Each key's messages are in the topic in order, and all are there once; or more
# often, if some acknowledgements were lost.  Those that were measured one by one
# aren't looked at.
sub in_order
{
	my ($topic, $name, %opts) = @_;
	my (%last, @wrong);
	my ($records, $copies) = (0, 0);

	foreach my $line (split /\n/, $kafka->ktool('consume', $topic))
	{
		next if $line =~ /"key": "single"/;
		my ($n) = $line =~ /"value": "(\d+) / or die "unexpected record: $line";
		my $key = $n % $keys;
		my $expected = ($last{$key} // $key - ($key > 0 ? $keys : 0)) + $keys;

		$copies++ if $n < $expected;
		next if $n < $expected;
		$records++;
		push @wrong, "key $key: $n, not $expected" if $n != $expected;
		$last{$key} = $n;
	}
	splice(@wrong, 20) if @wrong > 20;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply([ $records, @wrong ], [ $sent{$topic} ], $name);
	is($copies, 0, 'and once') unless $opts{copies};
	diag("$topic: $copies copies") if $opts{copies};
	return;
}

sub state_is
{
	my ($topic, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT state FROM outbox.topic WHERE topic = '$topic'", $expected);
}

sub backlog_is
{
	my ($topic, $n) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT coalesce(max(messages), 0) FROM outbox.backlog() WHERE topic = '$topic'", $n);
}

# ---------- they wait ----------

$node->safe_psql('postgres', "SELECT outbox.pause('paused')");
foreach my $topic (sort keys %state)
{
	send_messages($topic, $keys);
	state_is($topic, $state{$topic}) and pass("$topic is held");
}
send_messages($_, $waiting) foreach (sort keys %state);

# ---------- the other goes on ----------

sub percentile
{
	my ($share, @values) = @_;

	@values = sort { $a <=> $b } @values;
	return $values[ int($share * @values) ];
}

# Only one of the two servers publishes.
sub turn
{
	my ($topic) = @_;

	foreach my $other (grep { $_ ne $topic } keys %node)
	{
		set_conf($node{$other}, 'outbox.enabled' => 'off');
		wait_for_value($node{$other}, 'postgres',
			q(SELECT bool_and(state LIKE 'resting%') FROM outbox.worker WHERE kind = 'publisher'), 't');
	}
	set_conf($node{$topic}, 'outbox.enabled' => 'on');
	are_sent($topic, send_messages($topic, 20));
	return;
}

# Wait until they are; returns when the last one was
sub are_sent
{
	my ($topic, $first, $last) = @_;

	wait_for_value($node{$topic}, 'postgres',
		"SELECT status FROM outbox.message WHERE id = '$last'", 'SENT');
	wait_for_value($node{$topic}, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE id BETWEEN '$first' AND '$last'"
		  . " AND topic = '$topic' AND status <> 'SENT'", 0);
	return $node{$topic}->safe_psql('postgres',
		"SELECT extract(epoch FROM max(updated_at)) FROM outbox.message"
		  . " WHERE id BETWEEN '$first' AND '$last' AND topic = '$topic'");
}

my $dir = PostgreSQL::Test::Utils::tempdir();
my (%rate, %latency);

# From the capture to the mark SENT, in milliseconds: the commit between is the
# same in both servers.
sub measure_latency
{
	my ($topic) = @_;
	my $script = "$dir/$topic.sql";
	my $begun = $node{$topic}->safe_psql('postgres', 'SELECT clock_timestamp()');

	append_to_file($script, "\\sleep $apart ms\nSELECT outbox.send('$topic', repeat('x', 200), 'single');\n")
	  unless -e $script;
	is( reap(
			spawn_guarded(
				{}, $node{$topic}->installed_command('pgbench'),
				'-n', '-h', $node{$topic}->host, '-p', $node{$topic}->port, '-c', 1, '-t', $singles,
				'-f', $script, 'postgres'),
			0, 120),
		0, "$topic: $singles messages");
	my $singles_since = "FROM outbox.message WHERE topic = '$topic' AND key = 'single' AND created_at > '$begun'";
	wait_for_value($node{$topic}, 'postgres', "SELECT count(*) $singles_since AND status = 'SENT'", $singles);
	push @{ $latency{$topic} }, split /\n/, $node{$topic}->safe_psql('postgres',
		"SELECT 1000 * extract(epoch FROM updated_at - created_at) $singles_since");
	return;
}

foreach my $round (1 .. $rounds)
{
	foreach my $topic ($round % 2 ? qw(alone good) : qw(good alone))
	{
		turn($topic);
		measure_latency($topic);

		my ($first, $last, $committed) = send_messages($topic, $burst);
		push @{ $rate{$topic} }, $burst / (are_sent($topic, $first, $last) - $committed);
	}
}

foreach my $topic (qw(alone good))
{
	diag(sprintf('%-5s %6.0f messages/s (%s), latency p50 %.2f ms, p99 %.2f ms',
			$topic, percentile(0.5, @{ $rate{$topic} }),
			join(' ', map { sprintf '%.0f', $_ } @{ $rate{$topic} }),
			map { percentile($_, @{ $latency{$topic} }) } 0.5, 0.99));
}
my $slower = percentile(0.5, @{ $rate{alone} }) / percentile(0.5, @{ $rate{good} });
my $later = percentile(0.5, @{ $latency{good} }) / percentile(0.5, @{ $latency{alone} });

diag(sprintf('beside %d topics with %d messages each: rate / %.2f, latency x %.2f',
		scalar(keys %state), $waiting, $slower, $later));
cmp_ok($slower, '<', $limit, 'its rate is that of one alone');
cmp_ok($later, '<', $limit, 'and so is its latency');
$node{alone}->stop;
in_order('good', 'it is in order');
set_conf($node, 'outbox.enabled' => 'on');
state_is($_, $state{$_}) foreach (sort keys %state);
backlog_is($_, $sent{$_}) foreach (grep { $_ ne 'half' } sort keys %state);

# Of the topic with two good partitions only the messages of the third wait.
my $bad = grep { partition_of($_ % $keys, 3) == 1 } 1 .. $sent{half};
backlog_is('half', $bad) and pass('messages of the other partitions go on');

# ---------- they are mended ----------

# One client that goes on with a topic's messages
sub start_load
{
	my ($topic) = @_;

	append_to_file("$dir/load-$topic.sql",
		"\\set n :n + 1\nSELECT outbox.send('$topic', :n || ' ', (:n % $keys)::text);\n");
	return spawn_guarded(
		{}, $node->installed_command('pgbench'),
		'-n', '-h', $node->host, '-p', $node->port, '-c', 1, '-R', 1000, '-T', 3600,
		'-D', "n=$sent{$topic}", '-f', "$dir/load-$topic.sql", 'postgres');
}

# They may end in the middle of a transaction.
sub end_loads
{
	my (%load) = @_;

	reap($_, 'TERM') foreach (values %load);
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'), 0);
	$sent{$_} = $node->safe_psql('postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$_'") foreach (keys %load);
	return;
}

# More messages come before they are mended, while they catch up, and after that.
sub mend
{
	my ($how, @topics) = @_;
	my %load = map { $_ => start_load($_) } @topics;
	my $begun = time();

	$how->();
	foreach my $topic (@topics)
	{
		state_is($topic, 'ready');
		diag(sprintf('%s: mended and goes on after %.1f s', $topic, time() - $begun));
	}
	end_loads(%load);
	foreach my $topic (@topics)
	{
		backlog_is($topic, 0);
		in_order($topic, "$topic goes on, in order");
	}
	return;
}

mend(sub { $kafka->create_topic_on('missing', [ 1, 1, 1 ]) }, 'missing');
mend(sub { $kafka->acl_remove('User:ANONYMOUS', 'deny', 'write', 'topic', 'denied') }, 'denied');
mend(sub { $node->safe_psql('postgres', "SELECT outbox.resume('paused')") }, 'paused');
mend(sub { $second->start }, qw(leaderless half));

# ---------- a partition loses its leader while it is written to ----------

my %load = (half => start_load('half'));

wait_for_value($node, 'postgres',
	"SELECT count(*) > $sent{half} FROM outbox.message WHERE topic = 'half' AND status = 'SENT'", 't');
$second->kill9;
state_is('half', $state{half}) and pass('half is held');
$second->start;
state_is('half', 'ready') and pass('and goes on');
end_loads(%load);
backlog_is('half', 0);
in_order('half', 'in order', copies => 1);
is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.held'), 0, 'nothing is held');

$node->stop;
$second->stop;
$kafka->stop;
done_testing();
