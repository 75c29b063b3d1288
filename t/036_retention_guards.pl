# What keeps retention from losing a message: each of its guards, against a
# segment that is being emptied.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run ();
use OutboxTest::Clock;
use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A statement that waits for a lock for ever is a failure, too
$ENV{PGOPTIONS} = '-c statement_timeout=20s';

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic($_, 1) foreach ('orders', 'paused', 'asked', 'results');
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	conf => "outbox.retention = '14min'",
	start => 0);
start_with_clock($node);

# made before the extension, so that pg_dump locks it before the extension's
$node->safe_psql('postgres', 'CREATE TABLE blocker (a int); CREATE EXTENSION outbox');
$node->safe_psql('postgres', "SELECT outbox.pause('paused')");
$node->safe_psql('postgres',
	"SELECT outbox.set_topic('asked', result_topic => 'results', result_timeout => '1 day')");

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sub send_to
{
	my ($topic, $payload) = @_;
	return sql("SELECT outbox.send('$topic', '$payload'::text, 'k')");
}

sub status_of
{
	my ($id) = @_;
	return sql("SELECT status FROM outbox.message WHERE id = '$id'");
}

sub wait_status
{
	my ($id, $status, $name) = @_;
	return wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.message WHERE id = '$id'", $status)
	  && defined $name && pass($name);
}

# The view needs every segment
sub wait_status_quietly
{
	my ($id, $name) = @_;
	my $segment = hex(substr($id, 19, 4)) >> 6 & 0xFF;

	return wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.log_$segment WHERE id = '$id'", 'S')
	  && pass($name);
}

sub minutes
{
	my ($n) = @_;
	push_clock($node, 60 * $n);
	sql('SELECT outbox.config_changed()');
	return;
}

my $old = "FROM outbox.log WHERE segment >= 0
	AND id < outbox.message_id_at(clock_timestamp() - interval '15 min')";

sub emptied
{
	my ($name) = @_;
	return wait_for_value($node, 'postgres', "SELECT count(*) $old", '0') && pass($name);
}

sub waits_for
{
	my ($what, $name) = @_;
	return wait_for_value($node, 'postgres', 'SELECT retention_waits_for FROM outbox.stat',
		$what)
	  && pass($name);
}

sub waits_for_nothing
{
	return wait_for_value($node, 'postgres',
		'SELECT retention_waits_for IS NULL FROM outbox.stat', 't');
}

sub moved
{
	my ($id) = @_;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.log_kept WHERE id = '$id'", '1');
}

# Each begins in an empty ring but for what it has sent
sub begin
{
	minutes(20);
	wait_for_value($node, 'postgres', "SELECT count(*) $old", '0');
	return;
}

subtest 'a snapshot that is older than the move' => sub {
	begin();
	my $id = send_to('paused', 'seen by an old snapshot');
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	minutes(16);
	moved($id);
	waits_for(qr/^segment \d+ waits for a snapshot of process \d+, in its transaction since 2/,
		'it is waited for');
	is($session->query_safe("SELECT status FROM outbox.message WHERE id = '$id'"), 'NEW',
		'it sees the message');
	$session->query_safe('COMMIT');
	$session->quit;
	emptied('then the segment is emptied');
	waits_for_nothing();
	is(status_of($id), 'NEW', 'and the message is there');
};

subtest 'a prepared transaction' => sub {
	begin();
	sql("BEGIN; SELECT outbox.send('paused', 'prepared'::text, 'k'); PREPARE TRANSACTION 'p'");
	send_to('orders', 'committed');
	minutes(16);
	waits_for(qr/^segment \d+ waits for prepared transaction "p"$/, 'it is waited for');
	restart_with_clock($node);
	waits_for(qr/^segment \d+ waits for prepared transaction "p"$/, 'also after a restart');
	sql("COMMIT PREPARED 'p'");
	emptied('then the segment is emptied');
	is(sql("SELECT status, segment FROM outbox.log WHERE payload = 'prepared'"), 'N|-1', 'its message was moved');
};

subtest 'an open transaction' => sub {
	begin();
	my $session = $node->background_psql('postgres');
	$session->query_safe("BEGIN; SELECT outbox.send('paused', 'open'::text, 'k')");
	send_to('orders', 'committed');
	minutes(16);
	waits_for(qr/^segment \d+ waits for a lock of process \d+/, 'it is waited for');
	$session->query_safe("SELECT outbox.send('paused', 'open, later'::text, 'k'); COMMIT");
	$session->quit;
	emptied('then the segment is emptied');
	is(sql("SELECT string_agg(format('%s %s', status, segment < 0), ', ' ORDER BY id)
			FROM outbox.log WHERE payload IN ('open', 'open, later')"),
		'N t, N f', 'its message was moved, and the later one is elsewhere');
};

# A message that is final, so that it isn't moved, and then isn't any more
subtest 'sent again after the move' => sub {
	begin();
	my $id = send_to('orders', 'again');
	wait_status($id, 'SENT');
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	minutes(16);
	waits_for(qr/a snapshot of process/, 'everything was moved');
	sql("SELECT outbox.pause('orders')");
	sql("SELECT outbox.resend('$id')");
	$session->query_safe('COMMIT');
	$session->quit;
	emptied('the segment is emptied');
	is(status_of($id), 'NEW', 'it was moved after all');
	sql("SELECT outbox.resume('orders')");
	wait_status($id, 'SENT', 'and sent again');
};

subtest 'a reader' => sub {
	begin();
	my $id = send_to('paused', 'read');
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; SELECT count(*) FROM outbox.message');
	minutes(16);
	waits_for(qr/^segment \d+ waits for a lock of process \d+/, 'it is waited for');
	is(sql("SET lock_timeout = '1ms'; SELECT status FROM outbox.message WHERE id = '$id'"), 'NEW',
		'and nobody waits in a queue for it');
	$session->query_safe('COMMIT');
	$session->quit;
	emptied('then the segment is emptied');
};

# A trigger that waits makes the move last
sub hold_move
{
	my $session = $node->background_psql('postgres');

	sql(q(
		CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
		CREATE TRIGGER wait_here AFTER INSERT ON outbox.log_kept
			FOR EACH ROW EXECUTE FUNCTION wait_here()));
	$session->query_safe('SELECT pg_advisory_lock(1)');
	return $session;
}

sub wait_waiting
{
	my ($pattern, $name) = @_;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) > 0 FROM pg_stat_activity
		 WHERE wait_event_type = 'Lock' AND backend_type LIKE '$pattern'", 't')
	  && pass($name);
}

subtest 'a result that comes during the move' => sub {
	begin();
	my $id = send_to('asked', 'moved');
	wait_status($id, 'SENT');
	my $session = hold_move();
	minutes(16);
	wait_waiting('outbox publisher%', 'the move is under way');
	$mock->produce('results', { key => $id, value => 'SUCCESS' });
	wait_waiting('outbox consumer%', 'the result waits for its message');
	$session->query_safe('SELECT pg_advisory_unlock(1)');
	$session->quit;
	wait_status($id, 'CONFIRMED', 'it takes effect where the message is now');
	sql('DROP FUNCTION wait_here() CASCADE');
	emptied('the segment is emptied');
	is(sql('SELECT results_applied, results_unknown FROM outbox.stat'), '1|0', 'counted once');
};

subtest 'a message that somebody has locked' => sub {
	begin();
	my $id = send_to('asked', 'locked');
	wait_status($id, 'SENT');
	my $session = $node->background_psql('postgres');
	$session->query_safe("BEGIN; SELECT FROM outbox.log WHERE id = '$id' FOR UPDATE");
	minutes(16);
	waits_for(qr/^segment \d+ waits for a lock of process \d+/, 'it is waited for');
	wait_status(send_to('orders', 'meanwhile'), 'SENT', 'publishing goes on');
	$mock->produce('results', { key => $id, value => 'SUCCESS' });
	wait_waiting('outbox consumer%', 'the result waits for its message');
	$session->query_safe('COMMIT');
	$session->quit;
	wait_status($id, 'CONFIRMED', 'then it takes effect');
	emptied('and the segment is emptied');
	is(status_of($id), 'CONFIRMED', 'it stays as long again');
};

# It has its snapshot, and waits to lock its first table, when the move is made
subtest 'a pg_dump that is older than the move' => sub {
	begin();
	my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';
	my $id = send_to('paused', 'dumped');
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; LOCK TABLE blocker');
	my $pg_dump = IPC::Run::start(
		[ 'pg_dump', '-Fd', '-j', '2', '-f', $dump, $node->connstr('postgres') ],
		'>', '/dev/null', '2>', "$dump.err");
	wait_for_value($node, 'postgres', "SELECT count(*) FROM pg_stat_activity
		WHERE query LIKE 'LOCK TABLE%' AND wait_event_type = 'Lock'", '1');
	minutes(16);
	moved($id);
	waits_for(qr/^segment \d+ waits for a snapshot of process/, 'it is waited for');
	$session->query_safe('COMMIT');
	$session->quit;
	ok($pg_dump->finish, 'it ends well');
	emptied('then the segment is emptied');
	sql('CREATE DATABASE restored');
	$node->command_ok([ 'pg_restore', '-d', $node->connstr('restored'), $dump ], 'it is restored');
	is($node->safe_psql('restored', "SELECT status FROM outbox.message WHERE id = '$id'"), 'NEW',
		'the message is in the dump');
};

# Recovery has to read what is old, so nothing may wait for a result
subtest 'somebody has a table for himself' => sub {
	begin();
	sql("DELETE FROM outbox.topic_config; SELECT outbox.config_changed()");
	my $segment = sql("SELECT segment FROM outbox.log WHERE id = '"
		  . send_to('paused', 'locked out') . "'");
	minutes(1);
	wait_status(send_to('orders', 'in the next segment'), 'SENT');
	foreach my $table ("log_$segment", 'log_kept', 'inbox_0')
	{
		my $session = $node->background_psql('postgres');
		$session->query_safe("BEGIN; LOCK TABLE outbox.$table");
		minutes(16);
		wait_status_quietly(send_to('orders', $table), "publishing goes on without $table");
		$session->query_safe('COMMIT');
		$session->quit;
	}
	emptied('then the segment is emptied');
};

subtest 'emptying fails' => sub {
	begin();
	my $segment = sql("SELECT segment FROM outbox.log WHERE id = '"
		  . send_to('paused', 'referenced') . "'");
	sql("CREATE TABLE reference (id uuid REFERENCES outbox.log_$segment)");
	minutes(16);
	wait_for_value($node, 'postgres', 'SELECT last_error FROM outbox.stat',
		'retention of the log: cannot truncate a table referenced in a foreign key constraint')
	  and pass('it is said why');
	wait_status(send_to('orders', 'meanwhile'), 'SENT', 'publishing goes on');
	sql('DROP TABLE reference');
	minutes(2);
	emptied('then the segment is emptied');
};

subtest 'a crash between the move and the end' => sub {
	begin();
	my $id = send_to('paused', 'crash');
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; SELECT count(*) FROM outbox.message');
	minutes(16);
	moved($id);
	kill9_server($node);
	eval { $session->quit };
	forget_killed($node);
	start_with_clock($node);
	emptied('the segment is emptied');
	is(status_of($id), 'NEW', 'the message is there');
};

done_testing();
$node->stop;
$mock->stop;
