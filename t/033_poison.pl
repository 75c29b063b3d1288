# Messages that kill the bridge: they are found, go alone, and are DEAD after
# outbox.poison_attempts, while all others go out, in order by key.  What isn't a
# message's own doing makes none DEAD: signals from outside, a bridge that dies
# whatever it is given.
#
# The library test/poison.c, which is loaded into the bridge, ends it when it is
# given a record with a header "poison", as that says.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, start => 0);
my $file = PostgreSQL::Test::Utils::tempdir() . '/poison';

with_poison(sub { $node->start }, $file);
$node->safe_psql('postgres', 'CREATE EXTENSION outbox');

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

sub query { return $node->safe_psql('postgres', @_); }

sub publisher
{
	my ($columns) = @_;
	return query("SELECT $columns FROM outbox.worker WHERE kind = 'publisher' AND number = 0");
}

sub status_of
{
	my ($id) = @_;
	return query("SELECT status, error FROM outbox.message WHERE id = '$id'");
}

# Two topics for each case, and what the log has said since
my ($number, $log_start) = (0, 0);

sub new_topics
{
	my @topics = map { "topic-$number-$_" } qw(a b);

	$number++;
	$mock->create_topic($topics[0], 4);
	$mock->create_topic($topics[1], 1);
	$log_start = -s $node->logfile;
	return @topics;
}

# The times that the log tells of: those that count, or are not counted for a reason
sub tries_in_log
{
	my ($pattern) = @_;

	return () = slurp_file($node->logfile, $log_start) =~ /; it has done so \d+ of \d+ times$pattern/g;
}

sub counted { return tries_in_log(qr/\.$/m); }

sub uncounted
{
	my ($why) = @_;
	return tries_in_log(qr/, this one not counted: \Q$why\E\.$/m);
}

my $no_proof = 'no other message has gone out in between';

# Messages in one transaction: their values are numbers, which choose topic and
# key, and the poison of some is given.  Returns the ids of those.
sub send_numbers
{
	my ($topics, $first, $last, %poison) = @_;
	my $values = join(', ', map { "($_, '{\"poison\": \"$poison{$_}\"}'::jsonb)" } sort keys %poison);
	my @ids = split /\n/, query(<<"EOS");
SELECT id FROM (SELECT i, headers, outbox.send(
		CASE WHEN i % 3 = 0 THEN '$topics->[1]' ELSE '$topics->[0]' END, i::text, 'key-' || i % 20, headers) AS id
	FROM generate_series($first, $last) AS i
		LEFT JOIN (VALUES $values) AS poison(number, headers) ON number = i
	ORDER BY i OFFSET 0) AS sent
WHERE headers IS NOT NULL
EOS

	return @ids;
}

sub send_one
{
	my ($topic, $key, $poison) = @_;
	my $headers = defined $poison ? "'{\"poison\": \"$poison\"}'" : 'NULL';

	return query("SELECT outbox.send('$topic', 'one'::text, '$key', $headers)");
}

sub rest
{
	my ($state) = @_;

	set_conf($node, 'outbox.enabled' => $state eq 'rest' ? 'off' : 'on');
	wait_for_value($node, 'postgres',
		q(SELECT bool_and(state LIKE 'resting%') FROM outbox.worker WHERE kind = 'publisher'), 't')
	  if $state eq 'rest';
	return;
}

sub statuses_are
{
	my ($topics, $expected, $name) = @_;
	my $list = join(', ', map { "'$_'" } @$topics);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT string_agg(n, ' ') FROM (SELECT status || ' ' || count(*) AS n FROM outbox.message"
		  . " WHERE topic IN ($list) GROUP BY status ORDER BY status) AS statuses",
		$expected) && pass($name);
}

# Sends one message after the other to the second topic, each when the last one is
# SENT, until there is a certain result.  Returns how many.
sub send_until
{
	my ($topics, $sql, $expected) = @_;
	my $n = 0;

	while (query($sql) ne $expected && $n < 50)
	{
		my $id = send_one($topics->[1], 'trickle');
		my $before = counted() + uncounted('');

		wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT')
		  or last;
		wait_until('a try', sub { query($sql) eq $expected || tries_in_log('') > $before });
		$n++;
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(query($sql), $expected, 'after some others');
	return $n;
}

# Each number was sent once at least, the missing ones not at all, and the first
# copies are in order by key.  Returns how many copies there are besides.
sub check_order
{
	my ($topics, $first, $last, %missing) = @_;
	my (%seen, %last, @unordered);
	my $records = 0;

	foreach my $topic (@$topics)
	{
		foreach my $record ($mock->consume($topic))
		{
			my ($key, $n) = @$record{qw(key value)};

			next if $n !~ /^\d+$/;
			$records++;
			next if $seen{$n}++;
			push @unordered, $n if $n < ($last{$topic}{$key} // 0);
			$last{$topic}{$key} = $n;
		}
	}
	my @wrong = grep { !!$seen{$_} == !!$missing{$_} } $first .. $last;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	splice(@wrong, 20) if @wrong > 20;
	is("@wrong", '', 'every message is in Kafka that is to be there, and no other');
	is("@unordered", '', 'first copies are in order by key');
	return $records - keys %seen;
}

subtest 'one among a thousand' => sub {
	my @topics = new_topics();

	rest('rest');
	my ($id) = send_numbers(\@topics, 1, 1000, 500 => 'segv');
	rest('work');

	# of its key and topic are 520, 560, 580, 620...: 500 % 3 = 2, as of every third not
	my $behind = () = grep { $_ % 20 == 0 && $_ % 3 } 501 .. 1000;
	statuses_are(\@topics, 'NEW ' . ($behind + 1) . ' SENT ' . (999 - $behind),
		'its neighbours go out, but those of its key');
	wait_until('tries in vain', sub { uncounted($no_proof) >= 3 });
	is( query("SELECT tries, error FROM outbox.suspect WHERE id = '$id'"),
		'2|terminated by signal 11: Segmentation fault', 'nothing else goes out: no more tries count');
	is(query('SELECT max(tries) FROM outbox.suspect WHERE error IS NULL'), 0,
		'those behind it have done nothing');
	ok( wait_for_value($node, 'postgres', "SELECT state FROM outbox.worker WHERE kind = 'publisher'",
			'waiting to try a message again that killed the bridge'), 'outbox.worker says so');
	like(publisher('last_error'), qr/signal 11/, 'and how the bridge ends');
	is(status_of($id), 'NEW|', 'it is NEW');

	is(send_until(\@topics, "SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD'),
		1, 'when one more has gone out, so does the last of its tries');
	is(status_of($id), 'DEAD|killed the bridge to Kafka 3 times: terminated by signal 11: Segmentation fault',
		'it is DEAD, with its reason');
	is(counted(), 3, 'after three times that count');
	statuses_are(\@topics, 'SENT 1000 DEAD 1', 'what was behind it goes out');
	note(check_order(\@topics, 1, 1000, 500 => 1) . ' duplicates');
	is(query('SELECT count(*) FROM outbox.suspect'), 0, 'there are no suspects any more');
	is(query('SELECT dead FROM outbox.stat'), 1, 'outbox.stat counts it');
	is(publisher('restarts'), 0, 'the worker went on');
};

subtest 'many behind it' => sub {
	my @topics = new_topics();

	poison_is('segv');
	rest('rest');
	my $id = send_one($topics[0], 'k', 'file');
	query("SELECT outbox.send('$topics[0]', i::text, 'k') FROM generate_series(1, 9000) AS i");
	my $other = send_one($topics[0], 'other');
	rest('work');
	ok( wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$other'", 'SENT'),
		'more than a batch of its key don\'t keep others waiting');
	send_until(\@topics, "SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD');
	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topics[0]' AND status = 'SENT'", 9001);
	note(check_order([ $topics[0] ], 1, 9000) . ' duplicates');

	# an operator tries again
	poison_is('abort');
	query("SELECT outbox.resend('$id')");
	wait_until('the first that counts',
		sub { send_one($topics[1], 'trickle'); query('SELECT max(tries) FROM outbox.suspect') =~ /^[12]$/ });
	pass('resent, its tries begin anew');
	send_until(\@topics, "SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD');
	is(status_of($id), 'DEAD|killed the bridge to Kafka 3 times: terminated by signal 6: Aborted', 'DEAD again');
	is(counted(), 6, 'after three more');
	poison_is('nothing');
	query("SELECT outbox.resend('$id')");
	ok( wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT'),
		'resent when it is mended: SENT');
};

subtest 'what ends the bridge from outside' => sub {
	my @topics = new_topics();
	my $id;

	# a suspect first, caught once
	poison_is('segv');
	$id = send_one($topics[0], 'k', 'file');
	send_until(\@topics, 'SELECT max(tries) FROM outbox.suspect', 1);
	foreach my $how (qw(kill term slow))
	{
		my $before = query("SELECT tries FROM outbox.suspect WHERE id = '$id'");
		my $why = $how eq 'slow' ? 'the bridge had it for more than a second' :
		  "the bridge didn't end by itself";
		my $seen = uncounted($why);

		poison_is($how);
		wait_until("$how ends it twice",
			sub { send_one($topics[1], 'trickle'); uncounted($why) >= $seen + 2 });
		is(query("SELECT tries FROM outbox.suspect WHERE id = '$id'"), $before, "$how: that doesn't count");
	}
	poison_is('nothing');
	ok( wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT'),
		'it goes out in the end');
	is(query('SELECT count(*) FROM outbox.suspect'), 0, 'and is no suspect any more');

	# nor does it make suspects
	my $killed = 0;

	rest('rest');
	send_numbers(\@topics, 1, 20_000, 0 => 'none');
	rest('work');
	while ($killed < 10)
	{
		my $pid = publisher('bridge_pid') || next;

		$killed += kill($killed % 2 ? 'TERM' : 'KILL', $pid);
		is(query('SELECT count(*) FROM outbox.suspect'), 0, 'there are no suspects') if $killed % 5 == 0;
	}
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM outbox.message WHERE status = 'NEW'), 0);
	is(query("SELECT count(*) FROM outbox.message WHERE topic LIKE '$topics[0]%' AND status = 'DEAD'"),
		0, 'nothing is DEAD');
	note(check_order(\@topics, 1, 20_000) . ' duplicates');
};

subtest 'a bridge that dies on everything' => sub {
	my @topics = new_topics();
	my $before = publisher('bridge_restarts');

	set_conf($node, 'outbox.poison_attempts' => 1);
	poison_is('all');
	send_numbers(\@topics, 1, 300, 0 => 'none');
	wait_until('it dies again and again', sub { publisher('bridge_restarts') >= $before + 7 });
	is(query('SELECT count(*), max(tries) FROM outbox.suspect'), '300|0', 'nothing counts');
	is(counted(), 0, 'as the log says');
	statuses_are(\@topics, 'NEW 300', 'nothing is DEAD');
	my @pauses = slurp_file($node->logfile, $log_start) =~ /A new one is started in (\d+) ms/g;
	cmp_ok($pauses[-1], '>', 4 * $pauses[0], "the pauses grow: @pauses");
	poison_is('nothing');
	statuses_are(\@topics, 'SENT 300', 'all goes out when it is mended');
	check_order(\@topics, 1, 300);
	is(query('SELECT count(*) FROM outbox.suspect'), 0, 'nothing is suspected any more');
};

subtest 'once is enough' => sub {
	my @topics = new_topics();

	rest('rest');
	my ($id) = send_numbers(\@topics, 1, 50, 1 => 'exit');
	rest('work');
	send_until(\@topics, "SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD');
	is(status_of($id), 'DEAD|killed the bridge to Kafka 1 time: exited with status 3', 'poison_attempts = 1');
	is(counted(), 1, 'one time counts');
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM outbox.message WHERE status = 'NEW'), 0);
	check_order(\@topics, 1, 50, 1 => 1);
};

subtest 'the worker and the server end amid the tries' => sub {
	my @topics = new_topics();
	my $id;

	set_conf($node, 'outbox.poison_attempts' => 5);
	rest('rest');
	($id) = send_numbers(\@topics, 1, 100, 50 => 'segv');
	rest('work');
	send_until(\@topics, "SELECT tries >= 2 FROM outbox.suspect WHERE id = '$id'", 't');
	my $tries = query("SELECT tries FROM outbox.suspect WHERE id = '$id'");
	my $pid = publisher('pid');

	kill('KILL', $pid);
	wait_for_value($node, 'postgres', "SELECT pid <> $pid FROM outbox.worker WHERE kind = 'publisher'", 't');
	is(query("SELECT tries FROM outbox.suspect WHERE id = '$id'"), $tries, 'kill -9 of the worker: they are kept');
	send_until(\@topics, "SELECT tries > $tries FROM outbox.suspect WHERE id = '$id'", 't');
	$tries = query("SELECT tries FROM outbox.suspect WHERE id = '$id'");

	kill9_server($node);
	with_poison(sub { start_again($node) }, $file);
	is(query("SELECT tries FROM outbox.suspect WHERE id = '$id'"), $tries, 'kill -9 of the server, too');
	send_until(\@topics, "SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD');
	like(status_of($id), qr/killed the bridge to Kafka 5 times/, 'it is DEAD');
	is(counted(), 5, 'after five times in all');
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM outbox.message WHERE status = 'NEW'), 0);
	check_order(\@topics, 1, 100, 50 => 1);
};

subtest 'several publishers' => sub {
	my @topics = new_topics();
	my %poison = (100 => 'segv', 101 => 'segv', 203 => 'segv');
	my @ids;

	set_conf($node, 'outbox.publishers' => 4, 'outbox.poison_attempts' => 6);
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM outbox.worker WHERE kind = 'publisher'), 4);
	rest('rest');
	@ids = send_numbers(\@topics, 1, 1000, %poison);
	rest('work');
	my $list = join(', ', map { "'$_'" } @ids);
	my $tries = sub { query("SELECT sum(tries) FROM outbox.suspect WHERE id IN ($list)") };

	wait_until('tries', sub { send_one($topics[1], 'trickle'); ($tries->() || 0) >= 3 });
	foreach my $n (2, 3)
	{
		my $before = $tries->();

		set_conf($node, 'outbox.publishers' => $n);
		wait_for_value($node, 'postgres',
			qq(SELECT count(*) = $n AND bool_and(pid IS NOT NULL) FROM outbox.worker WHERE kind = 'publisher'), 't');
		cmp_ok($tries->(), '>=', $before, "$n publishers: the tries are kept");
	}
	wait_until('all are DEAD',
		sub {
			send_one($topics[1], 'trickle');
			query("SELECT count(*) FROM outbox.message WHERE id IN ($list) AND status = 'DEAD'") == 3;
		});
	is( query("SELECT count(*) FROM outbox.message WHERE id IN ($list)"
			  . " AND error LIKE 'killed the bridge to Kafka 6 times: %'"), 3, 'all are DEAD');
	is(counted(), 18, 'six times each');

	# the first publisher has what is resent, whoever had it before
	query("SELECT outbox.resend(id) FROM outbox.message WHERE id IN ($list)");
	wait_until('all are DEAD again',
		sub {
			send_one($topics[1], 'trickle');
			query("SELECT count(*) FROM outbox.message WHERE id IN ($list) AND status = 'DEAD'") == 3;
		});
	is(counted(), 36, 'resent: six times each again');
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM outbox.message WHERE status = 'NEW'), 0);
	note(check_order(\@topics, 1, 1000, %poison) . ' duplicates');
	set_conf($node, 'outbox.publishers' => 1, 'outbox.poison_attempts' => 3);
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM outbox.worker WHERE kind = 'publisher'), 1);
};

subtest 'a topic that was held' => sub {
	my @topics = new_topics();
	my $id;

	query("SELECT outbox.pause('$topics[0]')");
	($id) = send_numbers(\@topics, 1, 3000, 100 => 'segv');
	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topics[1]' AND status <> 'SENT'", 0);
	query("SELECT outbox.resume('$topics[0]')");
	send_until(\@topics, "SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD');
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM outbox.message WHERE status = 'NEW'), 0);
	check_order(\@topics, 1, 3000, 100 => 1);
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.held', 0);
	is(query('SELECT count(*) FROM outbox.suspect'), 0, 'there are no suspects any more');
};

$node->stop('fast');
done_testing();
