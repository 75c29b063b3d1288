# What is lost on the way is recovered: no result in time, resend, and the
# table of transitions.

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
$kafka->create_topic($_, 2) foreach (qw(orders results plain slow late));

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

sub wait_status
{
	my ($id, $status) = @_;
	return wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.message WHERE id = '$id'", $status);
}

# How many records of a topic carry this id
sub copies
{
	my ($topic, $id) = @_;
	return scalar(grep { ($_->{key} // '') eq $id } $kafka->consume($topic));
}

# SQLSTATE of a statement that fails
sub sqlstate
{
	my ($sql) = @_;
	my ($out, $err) = ('', '');
	$node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql", stdout => \$out, stderr => \$err);
	return $err =~ /ERROR:\s+(\w{5})/ ? $1 : "none: $err";
}

# ---------- no result in time ----------

sql("SELECT outbox.set_topic('orders', result_topic => 'results',
	result_timeout => '1 s', max_attempts => 3)");
my $id = send_message('orders', 'never answered');
wait_status($id, 'DEAD');
is(sql("SELECT attempts, error FROM outbox.message WHERE id = '$id'"),
	'3|no result after 3 attempts; what became of it is unknown',
	'dead after the last attempt, with the reason');
is(copies('orders', $id), 3, 'published three times under the same id');
is(sql("SELECT dead, republished FROM outbox.stat"), '1|2', 'and counted');

# Each wait is twice the one before it: 1, 2 and 4 seconds.
cmp_ok(
	sql("SELECT extract(epoch FROM updated_at - created_at) FROM outbox.message WHERE id = '$id'"),
	'>=', 7, 'the waits double');

# Nothing is compensated on a guess: the answer still counts when it comes.
$kafka->produce('results', { key => $id, value => 'SUCCESS' });
wait_status($id, 'CONFIRMED');
is(sql("SELECT error IS NULL FROM outbox.message WHERE id = '$id'"), 't',
	'a late result: confirmed, and what it died of is over');

# An answer in time ends it.
$id = send_message('orders', 'answered');
wait_status($id, 'SENT');
$kafka->produce('results', { key => $id, value => 'FAILED' });
wait_status($id, 'FAILED');
wait_for_value($node, 'postgres', "SELECT count(*) FROM outbox.delayed WHERE id = '$id'", '0');
is(copies('orders', $id), 1, 'what was answered is not sent again');

# ---------- resend ----------

$id = send_message('plain', 'once more');
wait_status($id, 'SENT');
my ($start) = (time());
sql("SELECT outbox.resend('$id')");
wait_for_value($node, 'postgres',
	"SELECT status, attempts FROM outbox.message WHERE id = '$id'", 'SENT|2');
cmp_ok(time() - $start, '<', 8, 'resend does not wait for the slow poll');
is(copies('plain', $id), 2, 'resend of a SENT message: the same id again');

$id = send_message('orders', 'dead, then sent again');
wait_status($id, 'DEAD');
sql("SELECT outbox.resend('$id')");
wait_for_value($node, 'postgres',
	"SELECT status, attempts, error IS NULL FROM outbox.message WHERE id = '$id'", 'SENT|4|t');
$kafka->produce('results', { key => $id, value => 'SUCCESS' });
wait_status($id, 'CONFIRMED');
is(sqlstate("SELECT outbox.resend('$id')"), '55000', 'resend of a CONFIRMED message');
is(sqlstate("SELECT outbox.resend('00000000-0000-7000-8000-000000000000')"),
	'P0002', 'resend of no message');
my $new = send_message('missing', 'waits');
is(sqlstate("SELECT outbox.resend('$new')"), '55000', 'resend of a NEW message');

# ---------- a result is expected only later ----------

# Long SENT when the topic gets its result topic: recovery finds it.
my $old = send_message('late', 'before set_topic');
wait_status($old, 'SENT');
sql("SELECT outbox.set_topic('late', result_topic => 'results', result_timeout => '500 ms')");
wait_for_value($node, 'postgres',
	"SELECT attempts >= 2 FROM outbox.message WHERE id = '$old'", 't');
$kafka->produce('results', { key => $old, value => 'SUCCESS' });
wait_status($old, 'CONFIRMED');

# Another timeout takes effect for what waits already.
sql("SELECT outbox.set_topic('slow', result_topic => 'results', result_timeout => '1 hour')");
my $slow = send_message('slow', 'an hour');
wait_status($slow, 'SENT');
my $fast = send_message('late', 'meanwhile');
wait_for_value($node, 'postgres',
	"SELECT attempts >= 2 FROM outbox.message WHERE id = '$fast'", 't');
is(sql("SELECT attempts FROM outbox.message WHERE id = '$slow'"),
	'1', 'each topic has its own timeout');
sql("SELECT outbox.set_topic('slow', result_topic => 'results', result_timeout => '1 s')");
wait_for_value($node, 'postgres',
	"SELECT attempts >= 2 FROM outbox.message WHERE id = '$slow'", 't');
pass('a shorter timeout counts for what waits already');
$kafka->produce('results', { key => $_, value => 'SUCCESS' }) foreach ($slow, $fast);
wait_status($_, 'CONFIRMED') foreach ($slow, $fast);

# ---------- through restarts ----------

my @lost = map { send_message('orders', "lost $_") } (1 .. 3);
wait_status($_, 'SENT') foreach (@lost);
$node->stop('immediate');
$node->start;
wait_status($_, 'DEAD') foreach (@lost);
is(copies('orders', $lost[0]) >= 3, 1, 'recovery goes on after a crash');

# NEW messages that a crash left behind.
$kafka->stop;
wait_for_value($node, 'postgres', 'SELECT brokers_reachable FROM outbox.stat', 'f');
my @left = map { send_message('plain', "left $_") } (1 .. 50);
kill9_server($node);
$kafka->start;
start_again($node);
wait_for_value($node, 'postgres', "SELECT count(*) FROM outbox.message
	WHERE topic = 'plain' AND status = 'SENT'", '51');
pass('NEW messages left by kill -9 are published without help');

# ---------- recovery of a held topic ----------

sql("SELECT outbox.set_topic('missing', result_topic => 'results', result_timeout => '1 s')");
$kafka->create_topic('missing', 1);
wait_status($new, 'SENT');
wait_for_value($node, 'postgres',
	"SELECT attempts >= 2 FROM outbox.message WHERE id = '$new'", 't');
pass('a message of a topic that was held is recovered, too');
$kafka->produce('results', { key => $new, value => 'SUCCESS' });
wait_status($new, 'CONFIRMED');

# ---------- the table of transitions ----------

my @statuses = qw(NEW SENT CONFIRMED FAILED DEAD);
my %known = map { $_ => 1 } (
	'NEW SENT', 'NEW DEAD', 'SENT CONFIRMED', 'SENT FAILED', 'SENT DEAD', 'DEAD CONFIRMED',
	'DEAD FAILED', 'NEW CONFIRMED', 'NEW FAILED', 'SENT NEW', 'DEAD NEW');

set_conf($node, 'outbox.enabled' => 'off');
wait_for_value($node, 'postgres',
	"SELECT count(*) FROM outbox.worker WHERE state LIKE 'resting%' AND kind = 'publisher'", '1');
foreach my $from (@statuses)
{
	foreach my $to (@statuses)
	{
		my $one = send_message('orders', "$from $to");
		sql("UPDATE outbox.log SET status = left('$from', 1)::\"char\" WHERE id = '$one'");
		my $got = sqlstate("SELECT outbox.change_status('$one', '$from', '$to')");
		is($got =~ /^none/ ? 'done' : $got,
			$known{"$from $to"} ? 'done' : '22023', "$from to $to");
		is(sql("SELECT status FROM outbox.message WHERE id = '$one'"),
			$known{"$from $to"} ? $to : $from, "$from to $to: what it is then");
	}
}
my $one = send_message('orders', 'not in that status');
is(sql("SELECT outbox.change_status('$one', 'SENT', 'CONFIRMED')"),
	'f', 'a transition from a status it is not in does nothing');

$node->stop;
$kafka->stop;
done_testing();
