# hold_key_when_dead: behind a message that can't be published those of its key
# wait, in order, until an operator decides; and until then no two of a key are
# under way at a time.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $small = 2000;    # max.message.bytes, and what is above it
my $large = 3000;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres'],
	conf => "outbox.ack_timeout = '20s'");

# A message of a key's, by its number; it can't be published if it is too large.
$node->safe_psql('postgres', <<"EOS");
CREATE FUNCTION put(topic text, key text, n int, size int DEFAULT 10) RETURNS uuid LANGUAGE sql
AS \$\$ SELECT outbox.send(topic, rpad(n || ' ', size, 'x'), key) \$\$;
EOS

sub new_topic
{
	my ($topic, $partitions, $limit) = @_;

	$kafka->create_topic($topic, $partitions // 3, 'max.message.bytes' => $limit // $small);
	$node->safe_psql('postgres', "SELECT outbox.set_topic('$topic', hold_key_when_dead => true)");
	return;
}

# Messages $from to $to of each of these keys, by turns; $bad is too large in the
# keys that begin with "bad".
sub put
{
	my ($topic, $keys, $from, $to, $bad) = @_;

	$bad //= 0;
	$node->safe_psql('postgres', <<"EOS");
SELECT count(put('$topic', key, n, CASE WHEN n = $bad AND key ~ '^bad' THEN $large ELSE 10 END))
FROM (SELECT * FROM generate_series($from, $to) AS n, unnest('{$keys}'::text[]) AS key
	  ORDER BY n, key) AS m
EOS
	return;
}

# What is in Kafka of each key, in order: the numbers of the messages
sub numbers
{
	my ($topic, $first_copies) = @_;
	my (%numbers, %seen);

	foreach my $record ($kafka->consume($topic))
	{
		next if $first_copies && $seen{ $record->{header}{id} }++;
		push @{ $numbers{ $record->{key} } }, ($record->{value} =~ /^(\d+)/);
	}
	return { map { $_ => join(' ', @{ $numbers{$_} }) } keys %numbers };
}

sub held_keys_are
{
	my ($topic, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT string_agg(key || ' ' || state || ' ' || waiting, ', ' ORDER BY key)
		 FROM outbox.held_key WHERE topic = '$topic'", $expected);
}

sub left_is
{
	my ($topic, $expected, $timeout) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'NEW'", $expected,
		$timeout);
}

sub resend
{
	my ($topic, $key) = @_;

	return $node->safe_psql('postgres',
		"SELECT outbox.resend(dead_id) FROM outbox.held_key WHERE topic = '$topic' AND key = '$key'");
}

sub release
{
	my ($topic, $key) = @_;
	return $node->safe_psql('postgres', "SELECT outbox.release_key('$topic', '$key')");
}

sub run { return join(' ', $_[0] .. $_[1]); }

subtest 'a message dies' => sub {
	new_topic('orders');
	put('orders', 'bad 1,bad 2,bad 3,good 1,good 2', 1, 20, 5);
	held_keys_are('orders', 'bad 1 held 15, bad 2 held 15, bad 3 held 15');
	left_is('orders', 45);
	is_deeply(numbers('orders'),
		{ (map { +"bad $_" => run(1, 4) } 1 .. 3), (map { +"good $_" => run(1, 20) } 1 .. 2) },
		'its key waits, others do not');
	is( $node->safe_psql('postgres',
			"SELECT DISTINCT m.status, m.error = h.error, m.topic = h.topic, m.key = h.key
			 FROM outbox.held_key AS h JOIN outbox.message AS m ON m.id = h.dead_id"),
		'DEAD|t|t|t', 'the view has the message that is DEAD, and why');
	like( $node->safe_psql('postgres', "SELECT error, hint FROM outbox.held_key WHERE key = 'bad 1'"),
		qr/^MSG_SIZE_TOO_LARGE.*SELECT outbox.resend\('[-0-9a-f]{36}'\).*SELECT outbox.release_key\('orders', 'bad 1'\)/,
		'and what to do');
	put('orders', 'bad 1,good 1', 21, 22);
	held_keys_are('orders', 'bad 1 held 17, bad 2 held 15, bad 3 held 15');
	left_is('orders', 47);
	is( $node->safe_psql('postgres',
			"SELECT backlog, held_keys, state FROM outbox.topic WHERE topic = 'orders'"),
		'47|3|ready', 'outbox.topic counts them');
	is(numbers('orders')->{'good 1'}, run(1, 22), 'the same for later ones');
};

subtest 'release_key' => sub {
	release('orders', 'bad 2');
	left_is('orders', 32);
	held_keys_are('orders', 'bad 1 held 17, bad 3 held 15');
	is(numbers('orders')->{'bad 2'}, run(1, 4) . ' ' . run(6, 20), 'the others go on without it');
	is( $node->safe_psql('postgres',
			"SELECT status, count(*) FROM outbox.message WHERE key = 'bad 2' GROUP BY 1 ORDER BY 1"),
		"SENT|19\nDEAD|1", 'it stays DEAD');
	is(state_of($node, "SELECT outbox.release_key('orders', 'bad 2')"), '55000',
		'a key that is not held');
	put('orders', 'bad 2', 21, 21);
	left_is('orders', 32);
};

subtest 'resend' => sub {
	my $dead = "SELECT count(*) FROM outbox.message WHERE key = 'bad 3' AND status = 'DEAD'";
	my $before = $node->safe_psql('postgres', "SELECT updated_at FROM outbox.message WHERE key = 'bad 3' AND status = 'DEAD'");

	resend('orders', 'bad 3');
	wait_for_value($node, 'postgres', "$dead AND updated_at > '$before'", 1);
	held_keys_are('orders', 'bad 1 held 17, bad 3 held 15');
	is(numbers('orders')->{'bad 3'}, run(1, 4), 'DEAD again, it still holds its key');

	$kafka->alter_config('orders', 'max.message.bytes' => 100_000);
	resend('orders', 'bad 1');
	left_is('orders', 15);
	held_keys_are('orders', 'bad 3 held 15');
	is(numbers('orders')->{'bad 1'}, run(1, 22), 'it goes out first, then the others');
};

subtest 'hold_key_when_dead => false' => sub {
	$node->safe_psql('postgres', "SELECT outbox.set_topic('orders')");
	left_is('orders', 0);
	held_keys_are('orders', '');
	is(numbers('orders')->{'bad 3'}, run(1, 4) . ' ' . run(6, 20), 'the others go on');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.key_waiting'), 0,
		'nothing is left over');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.key_released'), 0, 'nowhere');
};

subtest 'many messages of a key at once' => sub {
	new_topic('crowd');
	put('crowd', 'bad', 1, 700, 300);
	put('crowd', 'good', 1, 3);
	held_keys_are('crowd', 'bad held 400');
	left_is('crowd', 400);
	is_deeply(numbers('crowd'), { bad => run(1, 299), good => run(1, 3) }, 'one of them is DEAD');
	release('crowd', 'bad');
	left_is('crowd', 0);
	is(numbers('crowd')->{bad}, run(1, 299) . ' ' . run(301, 700), 'and then they go on');
	held_keys_are('crowd', '');
};

subtest 'one dies after the other' => sub {
	new_topic('again');
	put('again', 'bad', 1, 2, 2);
	put('again', 'bad', 3, 9, 5);
	put('again', 'bad', 10, 12);
	held_keys_are('again', 'bad held 10');
	release('again', 'bad');
	held_keys_are('again', 'bad held 7');
	is(numbers('again')->{bad}, '1 3 4', 'up to the next one');
	release('again', 'bad');
	left_is('again', 0);
	is(numbers('again')->{bad}, '1 3 4 ' . run(6, 12), 'then the rest');
};

subtest 'a late commit' => sub {
	my $early = $node->background_psql('postgres');

	new_topic('late');
	$early->query_safe("BEGIN; SELECT put('late', 'bad', 1)");
	put('late', 'bad', 2, 3, 2);
	held_keys_are('late', 'bad held 1');
	$early->query_safe('COMMIT');
	$early->quit;
	held_keys_are('late', 'bad held 2');
	release('late', 'bad');
	left_is('late', 0);
	is(numbers('late')->{bad}, '1 3', 'takes its place');
};

# The pass that publishes the queue is the one that enters the late message.
subtest 'a late commit when the key goes on' => sub {
	my $early = $node->background_psql('postgres');

	new_topic('both');
	put('both', 'bad', 1, 1, 1);
	held_keys_are('both', 'bad held 0');
	$early->query_safe("BEGIN; SELECT put('both', 'bad', 2)");
	put('both', 'bad', 3, 9);
	held_keys_are('both', 'bad held 7');
	$early->query_safe("SELECT outbox.release_key('both', 'bad'); COMMIT");
	$early->quit;
	left_is('both', 0);
	is_deeply([ sort { $a <=> $b } split / /, numbers('both')->{bad} ], [ 2 .. 9 ], 'nothing is lost');
	held_keys_are('both', '');
};

subtest 'the topic is paused' => sub {
	new_topic('paused');
	put('paused', 'bad', 1, 10, 3);
	held_keys_are('paused', 'bad held 7');
	$node->safe_psql('postgres', "SELECT outbox.pause('paused')");
	wait_for_value($node, 'postgres', "SELECT reason FROM outbox.held WHERE topic = 'paused'", 'paused');
	put('paused', 'bad,good', 11, 20);
	release('paused', 'bad');
	wait_for_value($node, 'postgres', "SELECT state FROM outbox.held_key WHERE topic = 'paused'",
		'going on');
	put('orders', 'meanwhile', 1, 1);
	left_is('orders', 0);
	left_is('paused', 27);
	is_deeply(numbers('paused'), { bad => '1 2' }, 'nothing goes out');
	$node->safe_psql('postgres', "SELECT outbox.resume('paused')");
	left_is('paused', 0);
	is_deeply(numbers('paused'), { bad => '1 2 ' . run(4, 20), good => run(11, 20) },
		'what was held goes out before what came then');
	held_keys_are('paused', '');
};

subtest 'the topic is gone' => sub {
	new_topic('gone', 1);
	put('gone', 'bad 1,bad 2', 1, 10, 3);
	held_keys_are('gone', 'bad 1 held 7, bad 2 held 7');
	$kafka->delete_topic('gone');
	release('gone', 'bad 1');
	release('gone', 'bad 2');
	wait_for_value($node, 'postgres', "SELECT state FROM outbox.topic WHERE topic = 'gone'",
		qr/missing|failing/);
	put('gone', 'bad 1,bad 2,good', 11, 12);
	put('orders', 'meanwhile', 2, 2);
	left_is('orders', 0);
	left_is('gone', 20);
	$kafka->create_topic('gone', 1);
	left_is('gone', 0);
	is_deeply(numbers('gone'),
		{ 'bad 1' => run(4, 12), 'bad 2' => run(4, 12), good => run(11, 12) },
		'what waited for a key goes out first, when it is back');
	held_keys_are('gone', '');
};

# Nobody tells the publisher: it looks by itself.
subtest 'the message is DEAD no more' => sub {
	new_topic('answered');
	$kafka->create_topic('results');
	$node->safe_psql('postgres',
		"SELECT outbox.set_topic('answered', 'results', hold_key_when_dead => true)");
	put('answered', 'bad 1,bad 2', 1, 3, 2);
	held_keys_are('answered', 'bad 1 held 1, bad 2 held 1');
	my ($answered, $deleted) = split /\n/, $node->safe_psql('postgres',
		"SELECT dead_id FROM outbox.held_key WHERE topic = 'answered' ORDER BY key");
	$kafka->produce('results', { key => $answered, value => 'SUCCESS' });
	$node->safe_psql('postgres', "DELETE FROM outbox.log WHERE id = '$deleted'");
	left_is('answered', 0);
	is_deeply(numbers('answered'), { 'bad 1' => '1 3', 'bad 2' => '1 3' },
		'after a result, and when it was deleted');
};

# How many bytes the broker has not read, of the connection that has the most
sub unread
{
	my $port = sprintf(':%04X', $kafka->bootstrap =~ /:(\d+)$/);
	my $most = 0;

	foreach my $line (split /\n/, slurp_file('/proc/net/tcp') . slurp_file('/proc/net/tcp6'))
	{
		my (undef, undef, $local, undef, undef, $queues) = split /\s+/, $line;

		next unless ($local // '') =~ /$port$/;
		my $bytes = hex(($queues =~ /:(\w+)/)[0]);
		$most = $bytes if $bytes > $most;
	}
	return $most;
}

subtest 'one of a key is under way' => sub {
	new_topic('few', 1, 1_000_000);
	put('few', 'a,b', 1, 1);
	left_is('few', 0);
	$kafka->pause;
	$node->safe_psql('postgres', "SELECT put('few', key, n, 20000)
		FROM generate_series(2, 5) AS n, unnest('{a,b}'::text[]) AS key");
	wait_until('the broker is sent something', sub { unread() > 20000 });
	kill('KILL', bridge_pids($node));
	$kafka->resume;
	left_is('few', 0);

	my $numbers = numbers('few');
	foreach my $key ('a', 'b')
	{
		like($numbers->{$key}, qr/^1 2 (2 )?3 4 5$/, "of $key only the first can be there twice");
	}
	is_deeply(numbers('few', 1), { a => run(1, 5), b => run(1, 5) }, 'all are there');

	# more than a batch takes of a key, and none of these has gone out
	$kafka->pause;
	put('few', 'a,b', 6, 205);
	wait_for_value($node, 'postgres', 'SELECT count(*) > 0 FROM outbox.key_waiting', 't');
	kill('KILL', bridge_pids($node));
	$kafka->resume;
	left_is('few', 0);
	is_deeply(numbers('few', 1), { a => run(1, 205), b => run(1, 205) }, 'what is queued waits');
};

subtest 'others are not slowed down' => sub {
	my $n = 100_000;
	my $median = sub {
		my @times = sort { $a <=> $b } split /\n/, $node->safe_psql('postgres', <<'EOS');
CREATE TEMP TABLE times (ms float);
DO $$
DECLARE
	id uuid;
	begun timestamptz;
BEGIN
	FOR i IN 1 .. 50 LOOP
		begun := clock_timestamp();
		id := put('crowd', 'good', i);
		COMMIT;
		PERFORM outbox.wait_for(id, '1 minute');
		INSERT INTO times VALUES (extract(epoch FROM clock_timestamp() - begun) * 1000);
		COMMIT;
	END LOOP;
END $$;
SELECT ms FROM times;
EOS
		return $times[ @times / 2 ];
	};

	# wait_for returns at SENT: no result is expected
	my $before = $median->();
	put('crowd', 'bad', 1, 1, 1);
	$node->safe_psql('postgres', "SELECT count(put('crowd', 'bad', n)) FROM generate_series(2, $n + 1) AS n");
	held_keys_are('crowd', "bad held $n");
	my $after = $median->();
	note(sprintf('%.1f ms, and %.1f ms with %d messages held', $before, $after, $n));
	cmp_ok($after, '<', 2 * $before + 5, 'by 100,000 messages of a held key');
};

subtest 'several publishers, and all of them end' => sub {
	my @keys = map { "bad $_" } 1 .. 12;
	my $pid = sub { (outbox_pids($node, 'publisher'))[ $_[0] ] };

	set_conf($node, 'outbox.publishers' => 4);
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox publisher%'), 4);
	new_topic('told', 5);
	put('told', join(',', @keys), 1, 3, 2);
	left_is('told', 12);
	$kafka->alter_config('told', 'max.message.bytes' => 100_000);

	# when they have saved their cursors they have nothing to wake up for
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.worker WHERE kind = 'publisher'
		  AND state = 'waiting for messages' AND since < clock_timestamp() - interval '2 s'), 4);
	$node->safe_psql('postgres',
		"SELECT outbox.resend(dead_id) FROM outbox.held_key WHERE topic = 'told'");
	left_is('told', 0, 5);
	is_deeply(numbers('told'), { map { $_ => run(1, 3) } @keys },
		'the first one publishes what is resent, and the others hear of it');

	new_topic('many', 5);
	put('many', join(',', @keys), 1, 300, 7);
	kill('TERM', $pid->(1));
	left_is('many', 12 * 293);
	wait_for_value($node, 'postgres',
		"SELECT count(*), sum(waiting) FROM outbox.held_key WHERE topic = 'many'", '12|3516');

	$kafka->alter_config('many', 'max.message.bytes' => 100_000);
	$node->safe_psql('postgres', "SELECT outbox.resend(dead_id) FROM outbox.held_key
		WHERE topic = 'many' AND key <= 'bad 6'");
	$node->safe_psql('postgres', "SELECT outbox.release_key(topic, key) FROM outbox.held_key
		WHERE topic = 'many' AND key > 'bad 6'");
	my $some = sub {
		my ($n) = @_;
		wait_until("$n are left",
			sub {
				$node->safe_psql('postgres', "SELECT count(*) FROM outbox.message
					WHERE topic = 'many' AND status = 'NEW'") <= $n;
			});
	};
	$some->(3300);
	kill9_server($node);
	start_again($node);
	$some->(2500);
	kill('KILL', bridge_pids($node));
	$some->(1700);
	set_conf($node, 'outbox.publishers' => 3);
	$some->(900);
	kill('KILL', $pid->(0));
	wait_until('the server is back',
		sub { (eval { ($node->psql('postgres', 'SELECT 1'))[0] } // 1) == 0; });
	left_is('many', 0);
	is_deeply(numbers('many', 1),
		{ map { $_ => $_ le 'bad 6' ? run(1, 300) : run(1, 6) . ' ' . run(8, 300) } @keys },
		'each key goes on in order');
	wait_for_value($node, 'postgres', "SELECT count(*) FROM outbox.held_key WHERE topic = 'many'", 0);
};

$node->stop;
$kafka->stop;
done_testing();
