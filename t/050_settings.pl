# What may be said to Kafka's client, where secrets belong, and that a reload
# applies it all.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Mock;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new(authorizer => 1);
$kafka->start;
$kafka->create_topic('plain', 1);

my $node = new_outbox_node('main', extension => ['postgres']);
my $secret = 'hunter2-never-shown';

# ---------- refusals ----------

my $offset = 0;

# What the server has logged since the last call.
sub new_log
{
	my $log = slurp_file($node->logfile, $offset);
	$offset = -s $node->logfile;
	return $log;
}

sub refused
{
	my ($setting, $value, $pattern, $name) = @_;
	my ($out, $err);
	my $rc = $node->psql('postgres', "ALTER SYSTEM SET $setting = '$value'",
		stdout => \$out, stderr => \$err);
	isnt($rc, 0, $name);
	like($err, $pattern, "$name: why");
	unlike($err . new_log(), qr/\Q$secret\E/, "$name: the value isn't repeated");
	return;
}

new_log();
refused('outbox.kafka_config', "sasl.password=$secret",
	qr/must not contain a secret.*outbox\.kafka_secrets_file/s, 'a secret');
refused('outbox.kafka_config', "client.id=x;ssl.key.password = $secret",
	qr/must not contain a secret/, 'a secret among others');
refused('outbox.kafka_config', "plugin.library.paths=$secret",
	qr/must not contain the property "plugin.library.paths"/, 'code to load');
refused('outbox.kafka_config', "sasl.kerberos.kinit.cmd=$secret",
	qr/must not contain the property/, 'code to run');
refused('outbox.kafka_config', "$_=1", qr/must not contain the property "\Q$_\E".*order/s, "$_")
  foreach (qw(enable.idempotence max.in.flight acks message.timeout.ms batch.size partitioner));
refused('outbox.kafka_config', "bootstrap.servers=x:1",
	qr/outbox\.bootstrap_servers/, 'what another setting says');
refused('outbox.kafka_config', "no.such.property=$secret", qr/no\.such\.property/,
	'an unknown property');
refused('outbox.kafka_config', "$secret", qr/not of the form name=value/, 'no pair at all');
refused('outbox.kafka_config', "$_=$secret", qr/result may be lost or applied twice/, "$_")
  foreach (qw(isolation.level auto.offset.reset enable.auto.commit));
refused('outbox.kafka_config', "$_->[0]=$secret", $_->[1], $_->[0])
  foreach (
	[ 'ssl.engine.location', qr/load a library or run a command/ ],
	[ 'message.max.bytes', qr/outbox\.max_message_bytes/ ],
	[ 'group.id', qr/needs no consumer group/ ],
	[ 'ssl.key.pem', qr/ssl\.key\.location/ ],
	[ 'some.new.token', qr/must not contain a secret/ ],
	[ 'sasl.mechanisms', qr/PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER/ ]);
refused('outbox.kafka_secrets_file', "kafka.secrets", qr/absolute/, 'a relative path');

# Other ways to say it
foreach my $statement (
	"SET outbox.kafka_config = 'sasl.password=$secret'",
	"ALTER DATABASE postgres SET outbox.kafka_config = 'sasl.password=$secret'",
	"ALTER ROLE CURRENT_USER SET outbox.kafka_config = 'sasl.password=$secret'",
	"SELECT set_config('outbox.kafka_config', 'sasl.password=$secret', false)")
{
	my ($rc, $out, $err) = $node->psql('postgres', $statement);
	my $name = $statement =~ s/[ ('"]*outbox.*//r;

	isnt($rc, 0, "$name is refused");
	unlike($err . new_log(), qr/\Q$secret\E/, "$name: the value isn't repeated");
}

# The same in the file: a reload says so in the log, and keeps the old value.
set_conf($node, 'outbox.kafka_config', "sasl.password=$secret");
$node->reload;
my $log = '';
wait_until('the reload to be refused',
	sub { $log .= new_log(); $log =~ /must not contain a secret/ });
unlike($log, qr/\Q$secret\E/, 'a reload does not log the value');
is($node->safe_psql('postgres', 'SHOW outbox.kafka_config'), '', 'and changes nothing');
set_conf($node, 'outbox.kafka_config', '');
$node->reload;

# ---------- the secrets file ----------

my $file = $node->basedir . '/kafka.secrets';

sub write_secrets
{
	my ($text, $mode) = @_;
	unlink $file;
	append_to_file($file, $text);
	chmod($mode, $file) or die "could not chmod $file: $!";
	return;
}

sub last_error_is
{
	my ($pattern, $name) = @_;
	my $error = '';
	ok( wait_until(
			$name,
			sub {
				$error = $node->safe_psql('postgres',
					"SELECT string_agg(last_error, ' ') FROM outbox.worker WHERE kind = 'publisher'");
				return $error =~ $pattern;
			}),
		"$name: outbox.worker tells") or diag($error);
	unlike($error . new_log(), qr/\Q$secret\E/, "$name: the value isn't repeated");
	return;
}

write_secrets("sasl.password=$secret\n", 0644);
set_conf($node, 'outbox.bootstrap_servers', $kafka->bootstrap_sasl);
set_conf($node, 'outbox.kafka_secrets_file', $file);
set_conf($node, 'outbox.kafka_config',
	'security.protocol=sasl_plaintext;sasl.mechanisms=PLAIN;sasl.username=outbox');
$node->reload;
last_error_is(qr/group or (world|others)|permission|access/i, 'a file that others can read');

write_secrets("what is this $secret\n", 0600);
$node->reload;
last_error_is(qr/kafka\.secrets.*line 1|line 1.*kafka\.secrets|invalid/i, 'a file that makes no sense');

write_secrets("sasl.password=x\n\nplugin.library.paths = $secret\n", 0600);
$node->reload;
last_error_is(qr/line 3 of secrets file ".*kafka\.secrets" can't be used/, 'a property that is refused');

write_secrets('# ' . 'x' x 70000 . "\nsasl.password=$secret\n", 0600);
$node->reload;
last_error_is(qr/secrets file ".*kafka\.secrets" is too large/, 'a file that is too large');

unlink $file;
$node->reload;
last_error_is(qr/could not open secrets file ".*kafka\.secrets": No such file/, 'no file');

# Opening a pipe must not wait for somebody to write to it.
POSIX::mkfifo($file, 0600) or die "mkfifo: $!";
$node->reload;
last_error_is(qr/secrets file ".*kafka\.secrets" is not a regular file/, 'a pipe');

# An unprivileged test has no file that is somebody else's, but one of root's.
SKIP:
{
	my ($roots) = grep { my @s = stat; @s && $s[4] == 0 && ($s[2] & 07777) == 0644 }
	  ('/etc/passwd', '/etc/group', '/etc/fstab');

	skip 'no file of root that all may read', 2 unless defined $roots && $> != 0;
	set_conf($node, 'outbox.kafka_secrets_file' => $roots);
	last_error_is(qr/secrets file "\Q$roots\E" has group or world access/, 'a file of root for all');
	set_conf($node, 'outbox.kafka_secrets_file' => $file);
}

# ---------- SASL ----------

write_secrets("# not the password\nsasl.password=$secret\n", 0600);
$node->reload;
$node->safe_psql('postgres', "SELECT outbox.send('plain', 'through SASL'::text)");
wait_for_value($node, 'postgres',
	"SELECT brokers_reachable, brokers_reason ~* 'auth' FROM outbox.stat", 'f|t');
unlike(new_log(), qr/\Q$secret\E/, 'a wrong password is not logged');
is($node->safe_psql('postgres', "SELECT status FROM outbox.message"),
	'NEW', 'and the message waits');

write_secrets("sasl.password = outbox-secret\n", 0600);
$node->reload;
wait_for_value($node, 'postgres', "SELECT status FROM outbox.message", 'SENT');
pass('a reload reads the file again, and the right password works');

my ($bridge) = bridge_pids($node);
foreach my $what (qw(cmdline environ))
{
	my $text = slurp_file("/proc/$bridge/$what");
	isnt($text, '', "the bridge's $what can be read");
	unlike($text, qr/outbox-secret/, "and the password isn't in it");
}
unlike(new_log(), qr/outbox-secret/, 'nor in the log');
is( $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE setting LIKE '%outbox-secret%'"),
	'0', 'nor in a setting');

# ---------- who sees the configuration ----------

$node->safe_psql('postgres', 'CREATE ROLE nosy LOGIN');
foreach my $look ('SHOW outbox.kafka_config', q(SELECT current_setting('outbox.kafka_secrets_file')))
{
	my ($rc, $out, $err) = $node->psql('postgres', "SET ROLE nosy;\n$look");
	like($err, qr/permission denied to examine|must be superuser or have privileges/, "$look is refused");
}
is( $node->safe_psql('postgres',
		"SET ROLE nosy; SELECT count(*) FROM pg_settings
		 WHERE name IN ('outbox.kafka_config', 'outbox.kafka_secrets_file') AND setting <> ''"),
	'0', 'only a superuser sees it');

# ---------- a reload applies every setting ----------

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic('plain', 1);
set_conf($node, 'outbox.kafka_config', 'client.id=renamed');
set_conf($node, 'outbox.kafka_secrets_file', '');
set_conf($node, 'outbox.bootstrap_servers', $mock->bootstrap);
$node->reload;
wait_for_value($node, 'postgres', "SHOW outbox.bootstrap_servers", $mock->bootstrap);
my $id = $node->safe_psql('postgres', "SELECT outbox.send('plain', 'elsewhere'::text)");
wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT');
is(scalar(grep { $_->{value} eq 'elsewhere' } $mock->consume('plain')),
	1, 'another broker');

set_conf($node, 'outbox.enabled', 'off');
$node->reload;
wait_for_value($node, 'postgres',
	"SELECT bool_and(state = 'resting: outbox.enabled is off'), count(bridge_pid)
	 FROM outbox.worker WHERE kind = 'publisher'", 't|0');
$id = $node->safe_psql('postgres', "SELECT outbox.send('plain', 'rest'::text)");
is($node->safe_psql('postgres', "SELECT status FROM outbox.message WHERE id = '$id'"),
	'NEW', 'enabled = off: capture goes on');
set_conf($node, 'outbox.enabled', 'on');
$node->reload;
wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT');
pass('enabled = on: the workers go on');

set_conf($node, 'outbox.max_message_bytes', '2000');
$node->reload;
wait_for_value($node, 'postgres', "SHOW outbox.max_message_bytes", '2000B');
my ($out, $err);
$node->psql('postgres', "SELECT outbox.send('plain', repeat('x', 3000))",
	stdout => \$out, stderr => \$err);
like($err, qr/too large/, 'max_message_bytes');

$node->stop;
$mock->stop;
$kafka->stop;
done_testing();
