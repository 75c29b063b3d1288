# Messages that kill the bridge, on a topic with hold_key_when_dead: such a one is
# found, goes alone and is DEAD as on any topic (033_poison.pl), and then it holds
# its key, of which nothing went out behind it meanwhile.  Others go on.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic('trickle', 1);
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, start => 0);
my $file = PostgreSQL::Test::Utils::tempdir() . '/poison';

with_poison(sub { $node->start }, $file);
$node->safe_psql('postgres', 'CREATE EXTENSION outbox');

sub query { return $node->safe_psql('postgres', @_); }

sub wait_for
{
	my ($sql, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres', $sql, $expected);
}

# What a record with the header "file" does from now on
sub poison_is
{
	my ($how) = @_;

	unlink($file);
	return if $how eq 'nothing';
	append_to_file("$file.new", "$how\n");
	rename("$file.new", $file) or die "$file: $!";
	return;
}

sub new_topic
{
	my ($topic) = @_;

	$mock->create_topic($topic, 4);
	query("SELECT outbox.set_topic('$topic', hold_key_when_dead => true)");
	return;
}

# What $code sends is there at once.
sub while_at_rest
{
	my ($code) = @_;

	set_conf($node, 'outbox.enabled' => 'off');
	wait_for(q(SELECT bool_and(state LIKE 'resting%') FROM outbox.worker WHERE kind = 'publisher'), 't');
	$code->();
	set_conf($node, 'outbox.enabled' => 'on');
	return;
}

# Messages $from to $to of each of these keys, by turns.  In the keys that begin
# with "bad" some are poison: number => how.
sub put
{
	my ($topic, $keys, $from, $to, %poison) = @_;
	my $poison = join(', ', "('', 0)", map { "('$poison{$_}', $_)" } sort keys %poison);

	query(<<"EOS");
SELECT count(outbox.send('$topic', n::text, key,
		CASE WHEN how IS NOT NULL THEN jsonb_build_object('poison', how) END))
FROM (SELECT n, key, how FROM generate_series($from, $to) AS n
		CROSS JOIN unnest('{$keys}'::text[]) AS key
		LEFT JOIN (VALUES $poison) AS p(how, number) ON number = n AND key LIKE 'bad%'
	  ORDER BY n, key OFFSET 0) AS m
EOS
	return;
}

sub left_is
{
	my ($topic, $key, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for("SELECT count(*) FROM outbox.message WHERE topic = '$topic'"
		  . " AND key LIKE '$key' AND status = 'NEW'", $expected);
}

sub held_keys_are
{
	my ($topic, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for("SELECT string_agg(key || ' ' || state || ' ' || waiting, ', ' ORDER BY key)
		FROM outbox.held_key WHERE topic = '$topic'", $expected) and pass($name);
	return;
}

# A time of a suspect counts if something else went out: one message after the
# other does, until that is so.
sub trickle_until
{
	my ($sql, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_until(
		"$expected: $sql",
		sub {
			my $id = query("SELECT outbox.send('trickle', 'one'::text)");

			wait_for("SELECT status FROM outbox.message WHERE id = '$id'", 'SENT');
			return query($sql) eq $expected;
		});
}

sub dead_are
{
	my ($topic, $n) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return trickle_until("SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'DEAD'", $n);
}

# Of each key the first copies in Kafka, in their order
sub numbers
{
	my ($topic) = @_;
	my (%numbers, %seen);

	foreach my $record ($mock->consume($topic))
	{
		push @{ $numbers{ $record->{key} } }, $record->{value} unless $seen{ $record->{header}{id} }++;
	}
	return { map { $_ => join(' ', @{ $numbers{$_} }) } keys %numbers };
}

sub run { return join(' ', $_[0] .. $_[1]); }

sub release
{
	my ($topic, $key) = @_;
	return query("SELECT outbox.release_key('$topic', '$key')");
}

sub no_suspects
{
	is(query('SELECT count(*) FROM outbox.suspect'), 0, 'nobody is suspected any more');
	is(query('SELECT count(*) FROM outbox.key_waiting'), 0, 'and nothing waits');
	return;
}

subtest 'it is DEAD, and holds its key' => sub {
	my $of_key = "FROM outbox.message WHERE topic = 'orders' AND key = 'bad'";

	new_topic('orders');
	while_at_rest(sub { put('orders', 'bad,good 1,good 2,good 3', 1, 30, 10 => 'segv') });
	left_is('orders', 'good%', 0);
	is(query("SELECT count(*) $of_key AND status = 'SENT'"), 9, 'what is behind it waits while it is tried');
	dead_are('orders', 1);
	held_keys_are('orders', 'bad held 20', 'it holds its key');
	is( query("SELECT h.dead_id = m.id, m.payload, h.error = m.error, m.error
			FROM outbox.held_key AS h, outbox.message AS m WHERE m.topic = 'orders' AND m.status = 'DEAD'"),
		't|10|t|killed the bridge to Kafka 3 times: terminated by signal 11: Segmentation fault',
		'as outbox.held_key says, and why');
	put('orders', 'bad,good 1,good 2,good 3', 31, 35);
	left_is('orders', 'good%', 0);
	held_keys_are('orders', 'bad held 25', 'later ones of the key wait, too');
	is_deeply(numbers('orders'), { bad => run(1, 9), map { +"good $_" => run(1, 35) } 1 .. 3 },
		'other keys go on');

	release('orders', 'bad');
	left_is('orders', '%', 0);
	is(numbers('orders')->{bad}, run(1, 9) . ' ' . run(11, 35), 'released, the key goes on in order');
	is(query("SELECT payload $of_key AND status = 'DEAD'"), 10, 'and the one stays DEAD');
	held_keys_are('orders', '', 'it is not held any more');
	no_suspects();
};

# More than a batch takes, and than a pass enters into the key's queue
subtest 'thousands behind it' => sub {
	my $n = 6000;
	my @others = map { "good $_" } 1 .. 50;

	new_topic('crowd');
	poison_is('segv');
	while_at_rest(
		sub {
			put('crowd', 'bad', 1, $n, 1 => 'file');
			put('crowd', join(',', @others), 1, 20);
		});
	left_is('crowd', 'good%', 0);
	is(query("SELECT count(*) FROM outbox.message WHERE topic = 'crowd' AND key = 'bad' AND status = 'SENT'"),
		0, 'others go out, of the key nothing does');
	dead_are('crowd', 1);
	held_keys_are('crowd', 'bad held ' . ($n - 1), 'all of them wait');
	put('crowd', join(',', 'bad', @others), $n + 1, $n + 5);
	left_is('crowd', 'good%', 0);

	# an operator tries again, too early
	query("SELECT outbox.resend(dead_id) FROM outbox.held_key WHERE topic = 'crowd'");
	wait_for("SELECT count(*) FROM outbox.message WHERE topic = 'crowd' AND status = 'DEAD'", 0);
	dead_are('crowd', 1);
	held_keys_are('crowd', 'bad held ' . ($n + 4), 'DEAD again, it still holds its key');
	is_deeply(numbers('crowd'), { map { $_ => run(1, 20) . ' ' . run($n + 1, $n + 5) } @others },
		'nothing of the key went out meanwhile');

	poison_is('nothing');
	query("SELECT outbox.resend(dead_id) FROM outbox.held_key WHERE topic = 'crowd'");
	left_is('crowd', '%', 0);
	is(numbers('crowd')->{bad}, run(1, $n + 5), 'mended, it goes first, and all others after it');
	no_suspects();
};

subtest 'one after the other, and the server ends meanwhile' => sub {
	new_topic('again');
	set_conf($node, 'outbox.poison_attempts' => 4);
	while_at_rest(sub { put('again', 'bad 1,bad 2,good', 1, 200, 50 => 'segv', 51 => 'abort', 120 => 'exit') });
	trickle_until("SELECT max(tries) >= 2 FROM outbox.suspect", 't');
	kill9_server($node);
	with_poison(sub { start_again($node) }, $file);
	left_is('again', 'good', 0);
	dead_are('again', 2);
	held_keys_are('again', 'bad 1 held 150, bad 2 held 150', 'each holds its own key');
	release('again', 'bad 1');
	dead_are('again', 3);
	held_keys_are('again', 'bad 1 held 149, bad 2 held 150', 'the next one holds the key again');
	kill9_server($node);
	with_poison(sub { start_again($node) }, $file);
	release('again', "bad $_") foreach (1, 2);
	dead_are('again', 5);
	held_keys_are('again', 'bad 1 held 80, bad 2 held 149', 'up to the next one');
	release('again', 'bad 2');
	dead_are('again', 6);
	release('again', "bad $_") foreach (1, 2);
	left_is('again', '%', 0);
	my $bad = join(' ', run(1, 49), run(52, 119), run(121, 200));
	is_deeply(numbers('again'), { good => run(1, 200), 'bad 1' => $bad, 'bad 2' => $bad }, 'in order');
	no_suspects();
};

subtest 'several publishers' => sub {
	my @keys = map { "bad $_" } 1 .. 8;

	new_topic('several');
	set_conf($node, 'outbox.publishers' => 3, 'outbox.poison_attempts' => 2);
	wait_for(q(SELECT count(*) FROM outbox.worker WHERE kind = 'publisher'), 3);
	while_at_rest(sub { put('several', join(',', @keys, map { "good $_" } 1 .. 8), 1, 100, 20 => 'segv') });
	left_is('several', 'good%', 0);
	dead_are('several', 8);
	held_keys_are('several', join(', ', map { "$_ held 80" } @keys), 'each is found by its own publisher');
	release('several', $_) foreach @keys;
	left_is('several', '%', 0);
	is_deeply(
		numbers('several'),
		{
			(map { +"good $_" => run(1, 100) } 1 .. 8),
			(map { $_ => run(1, 19) . ' ' . run(21, 100) } @keys)
		},
		'in order');
	no_suspects();
};

$node->stop('fast');
$mock->stop;
done_testing();
