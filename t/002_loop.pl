# The seed case of the pattern, with a client that isn't ours: kcat takes the
# key as the message id and the value as the order, and answers with the same
# key and the plain value SUCCESS or FAILED.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run ();
use JSON::PP ();
use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Utils;
use Test::More;

my $kcat = (grep { -x "$_/kcat" } split /:/, $ENV{PATH})[0];
plan skip_all => 'kcat is not installed' unless defined $kcat;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 4) foreach (qw(orders order-results));

my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
$node->safe_psql('postgres', q{
	CREATE TABLE orders (order_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		product_id int, quantity int, customer text);
	SELECT outbox.set_topic('orders', result_topic => 'order-results');
	SELECT outbox.attach('orders', 'orders',
		columns => '{order_id as orderId, product_id as productId, quantity}')});

sub kcat_consume
{
	my ($topic) = @_;
	my ($out, $err) = ('', '');

	# key and value, each on a line of its own; until the end of the topic
	IPC::Run::run(
		[ 'kcat', '-b', $kafka->bootstrap, '-C', '-q', '-e', '-o', 'beginning', '-t', $topic,
			'-f', "%k\t%s\n" ],
		'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(60))
	  or die "kcat failed: $err";
	return map { [ split /\t/, $_, 2 ] } split /\n/, $out;
}

sub kcat_produce
{
	my ($topic, @lines) = @_;
	my ($out, $err) = ('', '');
	my $in = join('', map { "$_\n" } @lines);

	IPC::Run::run(
		[ 'kcat', '-b', $kafka->bootstrap, '-P', '-t', $topic, '-K', "\t" ],
		'<', \$in, '>', \$out, '2>', \$err, IPC::Run::timeout(60))
	  or die "kcat failed: $err";
	return;
}

# ---------- orders go out ----------

$node->safe_psql('postgres', q{
	INSERT INTO orders (product_id, quantity, customer)
	SELECT n % 7, n, 'customer ' || n FROM generate_series(1, 20) AS n});
wait_for_value($node, 'postgres',
	"SELECT count(*) FROM outbox.message WHERE status = 'SENT'", '20');

# ---------- kcat is the inventory service ----------

my @orders = kcat_consume('orders');
is(scalar(@orders), 20, 'kcat has read the orders');

my (@answers, %expected);
foreach my $record (@orders)
{
	my ($id, $value) = @$record;
	my $order = JSON::PP::decode_json($value);

	like($id, qr/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
		"the key of order $order->{orderId} is the message id");
	is(join(',', sort keys %$order), 'orderId,productId,quantity', 'and the value the order');
	my $answer = $order->{quantity} > 15 ? 'FAILED' : 'SUCCESS';
	$expected{$id} = $answer eq 'FAILED' ? 'FAILED' : 'CONFIRMED';
	push @answers, "$id\t$answer";
}
kcat_produce('order-results', @answers);

wait_for_value($node, 'postgres', q{
	SELECT string_agg(status || ' ' || n, ', ' ORDER BY status)
	FROM (SELECT status, count(*) AS n FROM outbox.message GROUP BY status) AS s},
	'CONFIRMED 15, FAILED 5');
my %status = map { split /\|/ } split /\n/,
  $node->safe_psql('postgres', 'SELECT id, status FROM outbox.message');
is_deeply(\%status, \%expected, 'each message has the answer that was given to it');

# ---------- and the answer may be said in a header ----------

$node->safe_psql('postgres', q{
	CREATE TABLE payments (payment_id int PRIMARY KEY, account text);
	SELECT outbox.set_topic('payments', result_topic => 'order-results');
	SELECT outbox.attach('payments', 'payments', key => 'account')});
$kafka->create_topic('payments', 2);
$node->safe_psql('postgres', "INSERT INTO payments VALUES (1, 'a'), (2, 'a')");
wait_for_value($node, 'postgres',
	"SELECT count(*) FROM outbox.message WHERE topic = 'payments' AND status = 'SENT'", '2');
my @ids = split /\n/,
  $node->safe_psql('postgres', "SELECT id FROM outbox.message WHERE topic = 'payments' ORDER BY id");
my @payments = kcat_consume('payments');
is_deeply(
	[ map { [ $_->[0], JSON::PP::decode_json($_->[1])->{payment_id} ] } @payments ],
	[ [ 'a', 1 ], [ 'a', 2 ] ],
	'a key of its own keeps the order');

foreach my $i (0, 1)
{
	my $err = '';
	IPC::Run::run(
		[ 'kcat', '-b', $kafka->bootstrap, '-P', '-t', 'order-results', '-k', 'a',
			'-H', "reply_to_message_id=$ids[$i]" ],
		'<', \'{"status": "SUCCESS"}', '2>', \$err, IPC::Run::timeout(60))
	  or die "kcat failed: $err";
}
wait_for_value($node, 'postgres',
	"SELECT count(*) FROM outbox.message WHERE topic = 'payments' AND status = 'CONFIRMED'", '2');
is( $node->safe_psql('postgres',
		'SELECT results_applied, results_repeated, results_contrary, results_unknown, results_bad FROM outbox.stat'),
	'22|0|0|0|0',
	'every result counted once');

$node->stop;
$kafka->stop;
done_testing();
