# Places where the publish sweep could pass a message by for ever.  Each was
# one once, or nearly.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('plain', 1);

my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sub send_message
{
	my ($topic, $payload) = @_;
	return sql("SELECT outbox.send('$topic', '$payload'::text)");
}

sub wait_sent
{
	my ($id, $name) = @_;
	wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT')
	  and pass($name);
	return;
}

# ---------- a held topic is usable again when a late commit sends the sweep back ----------

# The sweep then passes by what it had left to the topic's mark before.
foreach my $round (1 .. 3)
{
	my $early = $node->background_psql('postgres');
	$early->query_safe("BEGIN");
	$early->query_safe("SELECT outbox.send('plain', 'early $round'::text)");
	my $held = send_message("held$round", 'behind it');
	wait_for_value($node, 'postgres',
		"SELECT state FROM outbox.topic WHERE topic = 'held$round'", 'missing');
	$kafka->create_topic("held$round", 1);
	$early->query_safe("COMMIT");
	$early->quit;
	wait_sent($held, "late commit and release of a topic, round $round");
}
wait_for_value($node, 'postgres',
	"SELECT count(*) FROM outbox.message WHERE status = 'NEW'", '0');

# ---------- prepared transactions ----------

# A resend that was prepared is due before it becomes visible.
my $again = send_message('plain', 'sent again by a prepared transaction');
wait_sent($again, 'sent once');
sql("BEGIN; SELECT outbox.resend('$again'); PREPARE TRANSACTION 'resend'");
wait_sent(send_message('plain', 'the sweep goes on'), 'others go on');
sql("COMMIT PREPARED 'resend'");
wait_for_value($node, 'postgres',
	"SELECT attempts FROM outbox.message WHERE id = '$again'", '2');

# Committed while no worker runs, and none may be prepared any more.
sql("BEGIN; SELECT outbox.send('plain', 'prepared'::text); PREPARE TRANSACTION 'send'");
wait_sent(send_message('plain', 'after it'), 'a later message');
set_conf($node, 'outbox.enabled' => 'off');
wait_for_value($node, 'postgres',
	"SELECT state LIKE 'resting%' FROM outbox.worker WHERE kind = 'publisher'", 't');
sql("COMMIT PREPARED 'send'");
set_conf($node, 'outbox.enabled' => 'on', 'max_prepared_transactions' => '0');
$node->restart;
wait_for_value($node, 'postgres',
	"SELECT status FROM outbox.message WHERE payload = 'prepared'", 'SENT');
is(sql("SELECT count(*) FROM outbox.prepared"), '0', 'the range was swept');

# ---------- a restore ----------

# Old messages come into a log whose workers have begun already, and into a
# segment that was not in use: 80c0 in the id says 3.
sql("CREATE DATABASE restored");
$node->safe_psql('restored', 'CREATE EXTENSION outbox');
my $first = $node->safe_psql('restored', "SELECT outbox.send('plain', 'first'::text)");
wait_for_value($node, 'restored', "SELECT status FROM outbox.message WHERE id = '$first'", 'SENT');
my $dump = PostgreSQL::Test::Utils::tempdir . '/data';
$node->safe_psql('restored', qq{
	COPY (SELECT overlay(outbox.message_id_at(now() - interval '1 day')::text
				PLACING '80c0' FROM 20), now(), 0, 3, lane, op, 'N', topic, key,
			payload, headers, result, error
		FROM outbox.log) TO '$dump';
	COPY outbox.log_3 (id, updated_at, attempts, segment, lane, op, status, topic, key, payload,
			headers, result, error) FROM '$dump'});
wait_for_value($node, 'restored',
	"SELECT parked, state FROM outbox.stat, outbox.worker WHERE kind = 'publisher'",
	qr/^messages were loaded into its log\|parked/);
is($node->safe_psql('restored', "SELECT count(*) FROM outbox.message WHERE status = 'NEW'"),
	'1', 'a log that was loaded is parked');
$node->safe_psql('restored', 'SELECT outbox.adopt()');
wait_for_value($node, 'restored',
	"SELECT count(*) FROM outbox.message WHERE status = 'NEW'", '0');
pass('adopt() lets the old messages go out');

# ---------- a quiet system ----------

# A rollback leaves the saved cursors low; recovery must not wait for traffic.
sql("SELECT outbox.set_topic('plain', result_topic => 'results', result_timeout => '1 s')");
my $open = $node->background_psql('postgres');
$open->query_safe("BEGIN");
$open->query_safe("SELECT outbox.send('plain', 'rolled back'::text)");
my $quiet = send_message('plain', 'no answer');
wait_sent($quiet, 'sent while a transaction is open');
$open->query_safe("ROLLBACK");
$open->quit;
wait_for_value($node, 'postgres',
	"SELECT attempts >= 2 FROM outbox.message WHERE id = '$quiet'", 't');
pass('recovery goes on in a quiet system');

# A topic that takes over a timeout another has: what it has SENT is looked at.
$kafka->create_topic('other', 1);
my $other = send_message('other', 'sent long ago');
wait_sent($other, 'sent without a result topic');
sql("SELECT outbox.set_topic('other', result_topic => 'results', result_timeout => '1 s')");
wait_for_value($node, 'postgres',
	"SELECT attempts >= 2 FROM outbox.message WHERE id = '$other'", 't');
pass('recovery looks again at what a topic has SENT');

# ---------- a clock that is behind ----------

# As after a failover to a machine whose clock is slow.
set_conf($node, 'outbox.enabled' => 'off');
wait_for_value($node, 'postgres',
	"SELECT state LIKE 'resting%' FROM outbox.worker WHERE kind = 'publisher'", 't');
sql("UPDATE outbox.lane SET cursor = outbox.message_id_at(now() + interval '1 hour')");
set_conf($node, 'outbox.enabled' => 'on');
$node->restart;
wait_sent(send_message('plain', 'an hour behind the cursors'), 'a clock behind the saved cursors');

$node->stop;
$kafka->stop;
done_testing();
