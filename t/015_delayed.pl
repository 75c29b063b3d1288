# Messages with a time of their own: deliver_at, and resending by topic and
# time.  Time isn't waited for where it can be pushed: the rows of
# outbox.delayed are moved.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic($_, 1) foreach ('later', 'again');
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, extension => ['postgres']);

sub values_of
{
	my ($topic) = @_;

	return join(' ', map { $_->{value} } $mock->consume($topic));
}

sub all_sent
{
	my ($topic) = @_;

	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status <> 'SENT'", '0');
}

sub send_at
{
	my ($value, $at) = @_;

	return $node->safe_psql('postgres',
		"SELECT outbox.send('later', '$value'::text, 'key', deliver_at => $at)");
}

subtest 'deliver_at' => sub {
	send_at('hour', "now() + interval '1 hour'");
	send_at('past', "now() - interval '1 hour'");
	send_at('soon', "now() + interval '1 second'");
	send_at('now', 'NULL');
	wait_for_value($node, 'postgres',
		q{SELECT count(*) FROM outbox.message WHERE status = 'SENT'}, '3');
	is(values_of('later'), 'past now soon', 'each in its time');
	is( $node->safe_psql('postgres',
			q{SELECT payload, status FROM outbox.message WHERE status <> 'SENT'}),
		'hour|NEW', 'the other one waits');

	push_time($node);
	all_sent('later');
	is(values_of('later'), 'past now soon hour', 'until it is due');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.delayed'),
		'0', 'no row of outbox.delayed is left');

	my ($status, $out, $err) = $node->psql('postgres',
		q{SELECT outbox.send('later', 'x'::text, deliver_at => 'infinity')});
	like($err, qr/deliver_at must not be infinity/, 'there must be a time');
};

subtest 'due while the server is down' => sub {
	send_at('down', "now() + interval '2 seconds'");
	$node->safe_psql('postgres', 'CHECKPOINT');
	$node->stop('immediate');
	$node->start;
	all_sent('later');
	like(values_of('later'), qr/ down$/, 'it goes out');
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.delayed', '0');
};

subtest 'a held topic' => sub {
	$node->safe_psql('postgres', "SELECT outbox.pause('later')");
	wait_for_value($node, 'postgres', 'SELECT reason FROM outbox.held', 'paused');
	send_at('first', "now() + interval '1 hour'");
	send_at('second', 'NULL');
	send_at('third', "now() + interval '1 hour'");
	push_time($node);
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.delayed', '0');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.message WHERE status = 'NEW'}),
		'3', 'what is due waits with the others');
	send_at('fourth', "now() + interval '1 hour'");
	$node->safe_psql('postgres', "SELECT outbox.resume('later')");
	wait_for_value($node, 'postgres',
		q{SELECT count(*) FROM outbox.message WHERE status = 'NEW'}, '1');
	like(values_of('later'), qr/ first second third$/, 'and goes on with them');
	push_time($node);
	all_sent('later');
	like(values_of('later'), qr/ third fourth$/, 'but what is not due does not');
};

# Its own sweep must not pass by what is handed to it on the way.
subtest 'due while its topic catches up' => sub {
	$node->safe_psql('postgres', "SELECT outbox.pause('later')");
	wait_for_value($node, 'postgres', 'SELECT reason FROM outbox.held', 'paused');
	$node->safe_psql('postgres',
		"SELECT outbox.send('later', 'd'::text, 'key', deliver_at => now() + interval '1 hour')
			FROM generate_series(1, 2000);
		 SELECT outbox.send('later', 'n'::text, 'key') FROM generate_series(1, 30000)");
	$node->safe_psql('postgres', "SELECT outbox.resume('later')");
	push_time($node);
	all_sent('later');
	is(scalar(grep { $_->{value} eq 'd' } $mock->consume('later')), 2000, 'each goes out once');
};

subtest 'resending by topic and time' => sub {
	$node->safe_psql('postgres',
		"SELECT outbox.send('again', n::text, 'key') FROM generate_series(1, 3) AS n");
	all_sent('again');
	my $since = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
	$node->safe_psql('postgres',
		"SELECT outbox.send('again', n::text, 'key') FROM generate_series(4, 300) AS n;
		 SELECT outbox.send('again', '301'::text, 'key',
			deliver_at => clock_timestamp() + interval '1 hour')");
	my $until = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
	push_time($node);
	$node->safe_psql('postgres', "SELECT outbox.send('again', '302'::text, 'key')");
	all_sent('again');
	is(values_of('again'), join(' ', 1 .. 302), 'all are sent once')
	  or return;

	is( $node->safe_psql('postgres', "SELECT outbox.resend('again', '$since', '$until')"),
		'298', 'those of the time are sent again');
	all_sent('again');
	my @again = map { $_->{value} } $mock->consume('again');
	is(join(' ', sort { $a <=> $b } @again[ 302 .. $#again ]),
		join(' ', 4 .. 301), 'and only those');
	is(join(' ', grep { $_ != 301 } @again[ 302 .. $#again ]),
		join(' ', 4 .. 300), 'in the order of capture');
	is( $node->safe_psql('postgres',
			q{SELECT min(attempts), max(attempts) FROM outbox.message
			  WHERE topic = 'again' AND payload::int BETWEEN 4 AND 301}),
		'2|2', 'each has two attempts');
	is( $node->safe_psql('postgres', "SELECT outbox.resend('again', '-infinity', '$since')"),
		'3', 'with no beginning');
	all_sent('again');

	my ($status, $out, $err) =
	  $node->psql('postgres', "SELECT outbox.resend('again', '$since', NULL)");
	like($err, qr/must not be null/, 'all three have to be given');
};

# The rows of outbox.delayed that were dealt with can't be removed then, and the
# scan for what is due mustn't come by them again.
subtest 'a held snapshot' => sub {
	my $many = 20_000;
	my $few = 20;
	my $holder = $node->background_psql('postgres');
	my $deleted = sub {
		return wait_for_value($node, 'postgres',
			"SELECT n_tup_del >= $_[0] FROM pg_stat_user_tables WHERE relid = 'outbox.delayed'::regclass", 't');
	};
	my $read = sub {
		return $node->safe_psql('postgres',
			"SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relid = 'outbox.delayed'::regclass");
	};
	my $before = $node->safe_psql('postgres',
		"SELECT n_tup_del FROM pg_stat_user_tables WHERE relid = 'outbox.delayed'::regclass");

	$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.delayed');
	$node->safe_psql('postgres',
		"SELECT count(outbox.send('later', 's'::text, 'key',
			deliver_at => clock_timestamp() + interval '1 second')) FROM generate_series(1, $many)");
	all_sent('later');
	$deleted->($before + $many);
	my $first = $read->();
	foreach (1 .. $few)
	{
		send_at('s', "clock_timestamp() + interval '10 milliseconds'");
		all_sent('later');
	}
	$deleted->($before + $many + $few);
	cmp_ok($read->() - $first, '<', $many, 'what is due is found without them');
	$holder->query_safe('COMMIT');
	$holder->quit;
};

$node->stop;
$mock->stop;
done_testing();
